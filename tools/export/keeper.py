"""A server that ends with the process that started it: `python keeper.py COMMAND ...`.

A script without imports of this package. It starts the command and ends it when its standard input is closed, which
happens when the process at the other end ends, in whatever way.
"""

import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def end_with_owner() -> None:
        sys.stdin.read()
        end(server)

    threading.Thread(target=end_with_owner, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: end(server))
    sys.exit(server.wait())


def end(server: "subprocess.Popen[bytes]") -> None:
    """End the server and the processes that it started."""
    for number, patience_s in ((signal.SIGTERM, 10), (signal.SIGKILL, None)):
        try:
            os.killpg(server.pid, number)
            server.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


if __name__ == "__main__":
    main()
