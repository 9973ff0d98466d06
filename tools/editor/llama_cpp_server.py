"""llama.cpp's server as a process of its own: `python llama_cpp_server.py FILE PORT CONTEXT THREADS HOST`.

A script without imports of this package, so that it starts at once. It ends when its standard input is closed: that
happens when the process that started it ends, in whatever way.
"""

import os
import sys


def main() -> None:
    import xllamacpp

    file, port, context, threads = sys.argv[1], *map(int, sys.argv[2:5])
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.hostnames = file, port, [sys.argv[5]]
    params.model_alias = {os.path.basename(file)}  # in replies, instead of the path
    params.n_ctx, params.n_parallel = context, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    sys.stdin.read()
    del server


if __name__ == "__main__":
    main()
