"""Processes of their own that do not import torch again: a server has imported everything and forks for each.

A child has its own folder, environment, streams, signals and random numbers, as a new interpreter would; only
the imported modules of other packages are inherited. What a test says about the start itself (imports,
torchrun, the installed command) needs a real one, by `subprocess`.
Usage: python forks_for_tests.py (a JSON line for each request at its standard input, one back for each)
"""
import atexit
import contextlib
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
import time
import traceback
from pathlib import Path

from runs_for_tests import ROOT, environment

PRELOADED = (  # nothing of corrmatch: each child imports the package itself
    'PIL.Image', 'einops', 'fastcore.docments', 'filelock', 'jinja2', 'matplotlib.pyplot', 'tabulate',
    'torch.distributed', 'torch.nn.parallel', 'torch.utils.data', 'torchvision.transforms.v2.functional',
    'tqdm.auto')
servers = {}


def ask_server(**request):
    "Send a request to the server of this process, which is started by the first one; its answer."
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
    "At the end of a process of tests nobody asks its server any more."
    if pid == os.getpid() and pid in servers:
        kill_tree(servers.pop(pid))


def descendants(pid):
    "Ids of the processes that a process has started and that live, and of those that they have started."
    for path in Path(f'/proc/{pid}/task').glob('*/children'):
        with contextlib.suppress(OSError):  # it ended between two looks
            for child in path.read_text().split():
                yield int(child)
                yield from descendants(child)


def kill_tree(process):
    "SIGKILL to a process and to all that it has started, so that nothing outlives a test."
    if process.poll() is None:
        for pid in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def wait_for_file(path, process, timeout=600):
    "Wait until a process, or somebody else, has written a file."
    deadline = time.monotonic() + timeout
    while not Path(path).exists():
        assert process.poll() is None and time.monotonic() < deadline, f'{path} did not appear'
        time.sleep(.01)


class Fork:
    """A forked process that does what `python *argv` does, with the methods of `subprocess.Popen`.

    `argv` begins with `-m module`, `-c code` or the path of a script. A process that takes longer than
    `seconds` is ended by SIGALRM."""

    def __init__(self, argv, cwd=None, seconds=600, **env):
        self.args = [str(word) for word in argv]
        self.returncode = None
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [str(Path(self._folder.name)/name) for name in ('out', 'err')]
        self.pid = ask_server(
            argv=self.args, cwd=str(cwd or ROOT), streams=self._streams, seconds=seconds,
            env=environment(**env))

    def poll(self):
        "The exit code, or None while it runs."
        if self.returncode is None:
            self.returncode = ask_server(poll=self.pid)
        return self.returncode

    def wait(self, timeout=None):
        "Wait for the end; the exit code."
        deadline = time.monotonic() + (timeout or 1e9)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(.01)
        return self.returncode

    def said(self):
        "All of standard output and standard error so far."
        return tuple(Path(path).read_text() if os.path.exists(path) else '' for path in self._streams)

    def wait_for(self, path, timeout=600):
        "Wait until it, or somebody else, has written a file."
        try:
            wait_for_file(path, self, timeout)
        except AssertionError as e:
            raise AssertionError(f'{e}: {self.said()}') from None

    def wait_for_line(self, number=0, timeout=600):
        "A line of standard output, the first one unless a number is given, as soon as it is there."
        deadline = time.monotonic() + timeout
        while self.said()[0].count('\n') <= number:
            assert self.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(.01)
        return self.said()[0].splitlines(keepends=True)[number]

    def communicate(self, timeout=None):
        "Wait for the end; standard output and standard error."
        self.wait(timeout)
        return self.said()

    def send_signal(self, number):
        "To this process only."
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        "SIGKILL."
        self.send_signal(signal.SIGKILL)


def fork_python(argv, cwd=None, seconds=600, processes=1, **env):
    """What `subprocess.run(['python', *argv], text=True)` returns; several processes are connected as by
    torchrun, and the worst of their exit codes counts."""
    ranks = [{}]
    if processes > 1:
        with socket.create_server(('127.0.0.1', 0)) as free:
            port = free.getsockname()[1]
        shared = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(processes))
        ranks = [shared | dict(RANK=str(i), LOCAL_RANK=str(i)) for i in range(processes)]
    started = [Fork(argv, cwd, seconds, **env, **rank) for rank in ranks]
    said = [process.communicate(seconds+20) for process in started]
    out, err = (''.join(part) for part in zip(*said))
    return subprocess.CompletedProcess(argv, max((p.returncode for p in started), key=abs), out, err)


def become(job):
    "In a forked child: take folder, environment and streams of a job."
    os.setsid()
    os.chdir(job['cwd'])
    os.environ.clear()
    os.environ.update(job['env'])
    for number, path in enumerate([os.devnull, *job['streams']]):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY)
        os.dup2(handle, number)
        os.close(handle)
    signal.alarm(job['seconds'])


def exit_code(pid):
    "Of a child that has ended; None while it runs."
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def serve():
    "Answer requests; returns in the children only, with the words of their command line."
    for line in sys.stdin:
        request = json.loads(line)
        if 'poll' in request:
            answer = exit_code(request['poll'])
        else:
            answer = os.fork()
            if not answer:
                become(request)
                return request['argv']
        print(json.dumps(answer), flush=True)
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
