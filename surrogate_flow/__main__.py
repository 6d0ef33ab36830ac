"""``python -m surrogate_flow`` is ``surrogate-flow``."""

from surrogate_flow.cli import main

if __name__ == "__main__":
    main()
