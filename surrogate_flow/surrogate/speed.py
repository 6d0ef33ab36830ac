"""What a fit sets for speed, and puts back."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from typing import Any

import numpy as np
import pytorch_lightning as L
import torch

from surrogate_flow.fields.errors import UserError

__all__ = ["Compile", "Flush"]

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Flush(L.Callback):
    """Flush subnormals to zero, and keep freed memory, while a fit runs, and no longer.

    Adam's moments of dead units become subnormal, and its step takes four times as
    long. Threads that torch starts meanwhile inherit it. Of tensors above 32 MB the C
    library gives the memory back to the system, which clears it again for the next one,
    page by page; that takes longer than a convolution of it. MALLOC_TRIM_THRESHOLD_ is
    not heeded: Dask sets it in each process that has a LocalCluster.
    """

    _before: bool | None = None

    def on_fit_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Begin to flush, and to keep."""
        self._before = not np.array([1e-310]) * 0.5
        torch.set_flush_denormal(True)
        if trainer.strategy.root_device.type == "cpu":
            _keep_memory(2**30)

    def on_fit_end(self, *_: Any) -> None:
        """Put back what was before, and give back what is freed above 32 MiB."""
        if self._before is not None:
            torch.set_flush_denormal(self._before)
            _keep_memory(2**25)
        self._before = None

    def on_exception(self, *_: Any) -> None:
        """Put back what was before."""
        self.on_fit_end()


def _keep_memory(most: int) -> None:
    """Have the C library keep what is freed of tensors of up to so many bytes."""
    libc = ctypes.CDLL(None)
    # glibc; before 2.35 it refuses more than 32 MiB, and keeps what it has.
    if hasattr(libc, "mallopt"):
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(option, most)
        libc.malloc_trim(0)


class Compile(L.Callback):
    """Compile the network of a surrogate in place while a fit runs, and no longer.

    So checkpoints have the same names of weights, and what follows the fit, such as an
    export, has the network as it was written.
    """

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        """Have the first batch compile it.

        Raises
        ------
        UserError
            If it trains on a CPU, and there is no C++ compiler.
        """
        compiler = "clang++" if sys.platform == "darwin" else "g++"
        compiler = os.environ.get("CXX", compiler)
        on_cpu = trainer.strategy.root_device.type == "cpu"
        if on_cpu and shutil.which(compiler) is None:
            raise UserError(
                "--model.compiled true",
                f"a C++ compiler, {compiler}",
                "none in PATH",
                "Type apt install g++, set CXX, or leave the option out.",
            )
        module.network.compile()

    def on_fit_end(self, trainer: L.Trainer, module: Any) -> None:
        """Leave the compiled code out again."""
        module.network._compiled_call_impl = None

    def on_exception(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """Leave it out."""
        self.on_fit_end(trainer, module)
