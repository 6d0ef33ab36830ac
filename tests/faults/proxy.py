"""A TCP proxy on the loopback that cuts connections, mostly in mid-message."""

import contextlib
import selectors
import socket
import threading


class Proxy:
    """Passes bytes on in both directions; cuts all connections at certain counts.

    Parameters
    ----------
    address : str
        ``tcp://host:port`` of the inlet.
    cuts : sequence of int
        Bytes that pass, after the last cut, before the next one.
    """

    def __init__(self, address, cuts):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._inlet = host, int(port)
        self._cuts = list(cuts)
        #: Cuts that were made.
        self.made = 0
        self._ears = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._ears.getsockname()[1]}"
        self._over = threading.Event()
        self._pairs = {}
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()

    def _run(self):
        passed = 0
        with selectors.DefaultSelector() as selector, self._ears:
            selector.register(self._ears, selectors.EVENT_READ)
            while not self._over.is_set():
                for key, _ in selector.select(0.05):
                    if key.fileobj is self._ears:
                        self._accept(selector)
                        continue
                    left = self._cuts[0] - passed if self._cuts else 65536
                    passed += self._pass_on(selector, key.fileobj, left)
                    if self._cuts and passed >= self._cuts[0]:
                        passed = 0
                        self._cuts.pop(0)
                        self.made += 1
                        self._close(selector, list(self._pairs))
                        break
            self._close(selector, list(self._pairs))

    def _accept(self, selector):
        outlet, _ = self._ears.accept()
        inlet = socket.create_connection(self._inlet)
        for one, other in ((outlet, inlet), (inlet, outlet)):
            self._pairs[one] = other
            selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, selector, one, limit):
        if one not in self._pairs:
            return 0
        try:
            data = one.recv(min(limit, 65536))
            self._pairs[one].sendall(data)
        except OSError:
            data = b""
        if not data:
            self._close(selector, [one])
        return len(data)

    def _close(self, selector, ends):
        for one in ends:
            for end in (one, self._pairs.pop(one, None)):
                if end is not None:
                    self._pairs.pop(end, None)
                    with contextlib.suppress(KeyError, ValueError):
                        selector.unregister(end)
                    end.close()
