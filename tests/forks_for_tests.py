"""Processes of their own that do not import torch again: a server has imported everything and forks for each.

A child has its own folder, environment, streams, signals and random numbers, as a new interpreter would; only
the imported modules of other packages are inherited. What a test says about the start itself (imports, torchrun, the installed
command) needs a real one, by `subprocess`.
Usage: python forks_for_tests.py (one JSON line per request at its standard input, one with exit codes back)
"""
import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

from runs_for_tests import ROOT, environment

PRELOADED = (  # nothing of corrmatch: each child imports the package itself
    'PIL.Image', 'einops', 'fastcore.docments', 'filelock', 'jinja2', 'matplotlib.pyplot', 'tabulate',
    'torch.distributed', 'torch.nn.parallel', 'torch.utils.data', 'torchvision.transforms.v2.functional',
    'tqdm.auto')
servers = {}


def ask_server(request):
    "Send a request to the server of this process, which is started by the first one; exit codes."
    server = servers.get(os.getpid())
    if server is None or server.poll() is not None:
        server = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment(), text=True, start_new_session=True)
        servers[os.getpid()] = server
        atexit.register(stop_server, os.getpid())
    server.stdin.write(json.dumps(request) + '\n')
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, 'the process that forks has ended'
    return json.loads(answer)


def stop_server(pid):
    "At the end of a process of tests: its server leaves when nobody can ask any more."
    if pid == os.getpid() and pid in servers:
        server = servers.pop(pid)
        server.kill()
        server.wait()


def fork_python(argv, cwd=None, processes=1, seconds=240, **env):
    """Run `python *argv` in a forked process, or in several that are connected as by torchrun.

    `argv` begins with `-m module`, `-c code` or the path of a script. A process that takes longer than
    `seconds` is ended by SIGALRM. Returns what `subprocess.run(..., text=True)` returns, with the worst of
    the exit codes."""
    ranks = [{}]
    if processes > 1:
        with socket.create_server(('127.0.0.1', 0)) as free:
            port = free.getsockname()[1]
        shared = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(processes))
        ranks = [shared | dict(RANK=str(i), LOCAL_RANK=str(i)) for i in range(processes)]
    with tempfile.TemporaryDirectory() as folder:
        streams = [str(Path(folder)/name) for name in ('out', 'err')]
        codes = ask_server(dict(
            argv=[str(word) for word in argv], cwd=str(cwd or ROOT), streams=streams, seconds=seconds,
            environments=[environment(**env, **rank) for rank in ranks]))
        out, err = (Path(path).read_text() for path in streams)
    return subprocess.CompletedProcess(argv, max(codes, key=abs), out, err)


def become(job, env):
    "In a forked child: take folder, environment and streams of a job."
    os.chdir(job['cwd'])
    os.environ.clear()
    os.environ.update(env)
    for number, path in enumerate([os.devnull, *job['streams']]):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        handle = os.open(path, flags)
        os.dup2(handle, number)
        os.close(handle)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(job['seconds'])


def serve():
    "Fork for each request; returns in the children only, with the words of their command line."
    for line in sys.stdin:
        job = json.loads(line)
        children = []
        for env in job['environments']:
            pid = os.fork()
            if not pid:
                become(job, env)
                return job['argv']
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        print(json.dumps(codes), flush=True)
    os._exit(0)


def leave(code):
    "End as an interpreter does, without taking the inherited modules apart, which would take seconds."
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_and_leave(argv):
    "Run, and end with the code or the traceback that Python would end with."
    code = 0
    try:
        run(argv)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        if code and not isinstance(e.code, int):
            print(e.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    leave(code)


def run(argv):
    "Do what `python *argv` does."
    first = argv[0]
    if first == '-m':
        sys.argv = argv[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(argv[1], run_name='__main__', alter_sys=True)
    elif first == '-c':
        sys.argv = ['-c', *argv[2:]]
        sys.path[0] = ''
        exec(compile(argv[1], '<string>', 'exec'), dict(__name__='__main__'))
    else:
        sys.argv = list(argv)
        sys.path[0] = str(Path(first).parent)
        runpy.run_path(first, run_name='__main__')


if __name__ == '__main__':
    for module in PRELOADED:
        __import__(module)
    gc.freeze()  # a collection in a child does not copy the pages of the modules
    run_and_leave(serve())
