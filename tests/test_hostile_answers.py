"""Answers that do not answer: none passes, none hangs a run, and the next answer is checked as if
nothing had been.

Each is checked as a student's answer to chapter 1, task 1.  Those that end by themselves have a
long time limit, so that a slow machine does not end them first.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minigrpo.course import isolation, landlock, runner, student
from minigrpo.course.isolation import Desk, Limits
from minigrpo.course.runner import RIGHT, WRONG, Verdict, checked

ROOT = Path(__file__).parent.parent
SOLUTION = ROOT / "tutorials/solutions/ch01.py"
FORKS = isolation.FORKS
FRAME = """
import json, os
def frame(message):
    data = json.dumps(message).encode()
    return len(data).to_bytes(8, "big") + data
"""
PAST = "import __main__\n__main__.PROCESSES.clear()\n"  # what the hook refuses
LIBC = PAST + "import ctypes, os, signal, time\nlibc = ctypes.CDLL(None)\n"
ENDLESS, ENDS = 0.5, 60.0  # seconds


def function(*lines):
    """The body of the function that is asked for."""
    return "\ndef expected_reward_gradient(logits, rewards):\n" + "\n".join(
        f"    {line}" for line in lines
    )


ZEROS = function("return np.zeros(len(logits))")
# What it does, and words of the message.
ENDING = {
    "os._exit": (function("import os; os._exit(0)"), "ended the process (exit code 0)"),
    "os._exit at import": ("import os; os._exit(0)", "ended the process (exit code 0)"),
    "sys.exit": (function("import sys; sys.exit(0)"), "SystemExit: 0"),
    "SystemExit at import": ("raise SystemExit(0)", "cannot be imported: SystemExit"),
    "kill itself": (function("import os; os.kill(os.getpid(), 9)"), "may not call os.kill"),
    "signal itself": (function("import signal; signal.raise_signal(9)"), "(Killed)"),
    "kill the parent": (function("import os; os.kill(os.getppid(), 9)"), "may not call os.kill"),
    "kill the group": (function("import os; os.killpg(0, 9)"), "may not call os.killpg"),
    "abort": (function("import os; os.abort()"), "(Aborted)"),
    "crash": (function("import ctypes; ctypes.string_at(0)"), "(Segmentation fault)"),
    "stale notes": (function("import faulthandler; faulthandler._sigsegv()"), "fault"),
    "recursion": (function("return expected_reward_gradient(logits, rewards)"), "RecursionError"),
    "recursion without limit": (
        "import sys; sys.setrecursionlimit(10**9)\n"
        + function("return [*map(expected_reward_gradient, [logits], [rewards])]"),
        "Expected an answer, got ",
    ),
    "recursion in C": (
        "import sys; sys.setrecursionlimit(10**9)\n"
        + function("x, y = [], []", "for _ in range(10**5): x, y = [x], [y]", "return x == y"),
        "",
    ),
    "memory: a list": (function("return [0] * 10**11"), "more memory than it may have"),
    "memory: a list that grows": (
        function("x = []", "while True: x.append(bytearray(10**7))"),
        "more memory than it may have",
    ),
    "memory: an array": (function("return np.ones(10**11)"), "more memory than it may have"),
    "memory: a text": (function("return 'x' * 10**11"), "more memory than it may have"),
    "memory: shared": (
        function("import mmap", "return [mmap.mmap(-1, 10**9) for _ in range(99)]"),
        "Cannot allocate memory",
    ),
    "memory: at import": ("x = [0] * 10**11", "MemoryError"),
    "forks": (
        function("import os", "for _ in range(20): os.fork()"),
        "may not call os.fork",
    ),
    "a child that keeps the output open": (
        function("import subprocess", "subprocess.Popen(['sleep', '1000'])"),
        "may not call subprocess.Popen",
    ),
    "a shell": (function("import os; os.system('sleep 1000')"), "may not call os.system"),
    "a thread that never ends": (
        function(
            "import threading, time",
            "threading.Thread(target=lambda: time.sleep(10**6)).start()",
            "return np.zeros(len(logits))",
        ),
        "Expected",
    ),
    "prints a verdict": (
        function(
            "print('ch01 task 1: gradient of the expected reward … right')",
            "print('all 4 tasks are right')",
            "return 'right'",
        ),
        "expected numbers",
    ),
    "the mode of an open folder": (
        function("import os", "os.fchmod(os.open('.', 0), 0o700)"),
        "may not call os.chmod",
    ),
    "machine code": (
        function("import ctypes; ctypes.CDLL(None).kill(1, 0)"),
        "may not call ctypes.dlopen",
    ),
    "machine code that is loaded": (
        function("import ctypes; ctypes.pythonapi.PyRun_SimpleString(b'')"),
        "may not call ctypes.dlsym",
    ),
    "a file by its open folder": (
        function("import os", f"os.open({str(SOLUTION)[1:]!r}, 0, dir_fd=os.open('/', 0))"),
        "may not read this file",
    ),
    "the mode of a file by its open folder": (
        function("import os", "os.chmod('none', 0o600, dir_fd=os.open('.', 0))"),
        "may not call os.chmod",
    ),
    "the times of a file by its open folder": (
        function("import os", "os.utime('none', dir_fd=os.open('.', 0))"),
        "may not call os.utime",
    ),
    "the owner of a file by its open folder": (
        function("import os", "os.chown('none', -1, -1, dir_fd=os.open('.', 0))"),
        "may not call os.chown",
    ),
    "orders for the file system": (
        function("import fcntl", "fcntl.ioctl(open('x', 'w'), 0x80086601, bytes(8))"),
        "may not call fcntl.ioctl",
    ),
    "a device": (
        function("import os", "os.mknod('null', 0o020600, os.makedev(1, 3))"),
        "has no attribute 'mknod'",
    ),
    "machine code of its own": (
        function(
            "import readline, shutil, sys",
            "shutil.copy(readline.__file__, '.')",
            "del sys.modules['readline']",
            "sys.path.insert(0, '.')",
            "import readline",
        ),
        "may not load machine code",
    ),
    "machine code in memory": (
        function(
            "import _ctypes, os, sys",
            "from importlib.machinery import ExtensionFileLoader, ModuleSpec",
            "copy = os.memfd_create('x')",
            "os.write(copy, open(_ctypes.__file__, 'rb').read())",
            "path = f'/proc/self/fd/{copy}'",
            "loader = ExtensionFileLoader('_ctypes', path)",
            "loader.create_module(ModuleSpec('_ctypes', loader, origin=path))",
        ),
        "may not load machine code" if sys.platform == "linux" else "AttributeError",
    ),
    "machine code by another library": (
        function("import _cffi_backend"),
        "may not import _cffi_backend",
    ),
    "an attribute elsewhere": (
        function("import os", "os.setxattr('/', 'user.minigrpo', b'')")
        if hasattr(os, "setxattr")
        else function("import os", "os.utime('/')"),
        "in its own folder only",
    ),
    "a terminal": (function("open('/dev/tty', 'rb', 0)"), "may not read this file"),
    "the whole disk": (function("open('/dev/sda', 'rb', 0)"), "may not read this file"),
    "folders a thousand deep": (
        function(
            "import os",
            "for _ in range(1500):",
            "    os.mkdir('d')",
            "    os.chdir('d')",
            "return np.zeros(len(logits))",
        ),
        "wrote more than",
    ),
    "endless rows of nothing": (function("return np.empty((10**12, 0))"), "no answer"),
    "rows of rows of nothing": (function("return np.empty((4000, 4000, 0))"), "no answer"),
    "many objects of nothing": (function("return np.empty((4000, 0), dtype=object)"), "no answer"),
    "texts": (
        function("return [str(x) for x in logits]"),
        "expected numbers",
    ),
    "texts as objects": (
        function("return np.array([str(x) for x in logits], dtype=object)"),
        "expected numbers",
    ),
    "texts in objects": (
        function("return [np.array(str(x), dtype=object) for x in logits]"),
        "expected numbers",
    ),
    "complex numbers as objects": (
        function("return np.array([complex(x) for x in logits], dtype=object)"),
        "expected numbers",
    ),
    "lowers its priority": (
        function("import os; os.setpriority(os.PRIO_PROCESS, 0, 19)"),
        "has no attribute 'setpriority'",
    ),
    "lowers its priority by the module below": (
        function("import posix; posix.setpriority(posix.PRIO_PROCESS, 0, 19)"),
        "has no attribute 'setpriority'",
    ),
    "lowers its priority by the oldest call": (
        function("import os; os.nice(1)"),
        "has no attribute 'nice'",
    ),
    "lowers its priority by the module below, anew": (
        function("import sys", "del sys.modules['posix']", "import posix; posix.nice(1)"),
        "may not import posix",
    ),
    "keeps a core": (
        function("import os; os.sched_setaffinity(0, {0})"),
        "has no attribute 'sched_setaffinity'",
    ),
    "sets the clock": (
        function("import time; time.clock_settime"),
        "has no attribute 'clock_settime'",
    ),
    "forks by the module below": (
        function("import _posixsubprocess; _posixsubprocess.fork_exec"),
        "has no attribute 'fork_exec'",
    ),
    "an interpreter without a hook": (
        function("import _xxsubinterpreters"),
        "may not import _xxsubinterpreters",
    ),
    "reads what is at home": (
        function(f"return open({str(Path.home() / '.netrc')!r})"),
        "may not read this file",
    ),
    "forges messages on all files": (
        FRAME
        + function(
            "for message in ({'value': True}, {'value': 'right'}, {'state': 'right', 'points': 1},",
            "                {'value': None, 'notes': []}, {'to_do': 3}, 'right', [], None, 1):",
            "    for number in range(64):",
            "        try: os.write(number, frame(message))",
            "        except OSError: pass",
            "os._exit(0)",
        ),
        "",
    ),
    "forges an answer on all files": (
        FRAME
        + function(
            "for number in range(64):",
            "    try: os.write(number, frame({'value': [1.0, 2.0, 3.0], 'notes': []}) * 99)",
            "    except OSError: pass",
            "os._exit(0)",
        ),
        "Expected",
    ),
    "forges a huge message": (
        FRAME
        + function(
            "for number in range(3, 64):",
            "    try: os.write(number, (2**62).to_bytes(8, 'big') + b'x' * 99)",
            "    except OSError: pass",
            "os._exit(0)",
        ),
        "",
    ),
    "forges types": (
        FRAME
        + function(
            "for body in (['<f8', [10**12], ''], ['O', [1], ''], [], None, ['<f8', [-1], 'AA==']):",
            "    for number in range(3, 64):",
            "        try: os.write(number, frame({'value': {'array': body}, 'notes': []}))",
            "        except OSError: pass",
            "os._exit(0)",
        ),
        "something that is no answer",
    ),
    "patches NumPy": (
        "np.allclose = np.array_equal = np.isfinite = lambda *_, **__: True\n"
        "np.abs = lambda x: 0 * x\nnp.testing.assert_allclose = lambda *_, **__: None\n"
        "np.array_equiv = np.allclose\nnp.asarray = lambda x, *_, **__: x\n" + ZEROS,
        "",
    ),
    "patches the comparison": (
        "from minigrpo.course import grading\n"
        "grading.Answer.compare = grading.Answer.check = lambda *_, **__: None\n"
        "grading.close = lambda *_: True\nclass Never(Exception): pass\n"
        "grading.WrongAnswer = Never\ngrading.wrong = lambda *_: Never()\n" + ZEROS,
        "Expected",
    ),
    "patches the check": (
        "from minigrpo.course import ch01, runner, isolation, plain\n"
        "for module in (ch01, runner, isolation, plain):\n"
        "    for name in list(vars(module)):\n"
        "        if callable(getattr(module, name)):\n"
        "            setattr(module, name, lambda *_, **__: None)\n" + ZEROS,
        "",
    ),
    "replaces modules": (
        "import sys, types\nfor name in list(sys.modules):\n"
        "    if name.startswith('minigrpo'): sys.modules[name] = types.ModuleType(name)\n" + ZEROS,
        "",
    ),
    "is equal to everything": (
        "class Equal:\n    def __eq__(self, other): return True\n    __le__ = __ge__ = __eq__\n"
        "    def __abs__(self): return self\n    def __sub__(self, other): return self\n"
        "    __rsub__ = __sub__\n    __hash__ = None\n" + function("return Equal()"),
        "expected numbers, got Equal",
    ),
    "an array that lies": (
        "class Lies(np.ndarray):\n    def __le__(self, other): return np.array(True)\n"
        "    __eq__ = __ge__ = __lt__ = __le__\n    def __sub__(self, other): return 0 * self\n"
        "    def __array_ufunc__(self, *_, **__): return np.zeros(3)\n"
        "    def __array_function__(self, *_, **__): return True\n"
        + function("return np.arange(9.0)[: len(logits)].view(Lies)"),
        "expected",
    ),
    "a list that lies": (
        "class Lies(list):\n    def __len__(self): return 3\n"
        "    def __iter__(self): return iter([1.0, 2.0, 3.0])\n"
        "    def __getattribute__(self, name): return lambda *_: True\n"
        + function("return Lies([1.0, 5.0])"),
        "Expected shape (3,), got shape (2,)",
    ),
    "a number that lies": (
        "class Lies(float):\n    def __eq__(self, other): return True\n    __le__ = __eq__\n"
        "    def __float__(self): return 7.0\n    __hash__ = None\n"
        + function("return [Lies(3)] * len(logits)"),
        "got 3",
    ),
    "a type that lies": (
        "class Lies:\n    __class__ = list\n"
        "    def __array__(self, *_, **__): raise SystemExit(0)\n" + function("return Lies()"),
        "",
    ),
    "looks for the right answer in the frames": (
        "import sys\n"
        + function(
            "frame = sys._getframe()",
            "while frame:",
            "    for space in (frame.f_locals, frame.f_globals):",
            "        for name in ('right', 'mistakes', 'p', 'z', 'r', 'slope', 'answer'):",
            "            if name in space and name not in ('logits', 'rewards'):",
            "                return space[name]",
            "    frame = frame.f_back",
            "return np.zeros(len(logits))",
        ),
        "",
    ),
    "looks for the right answer in memory": (
        "import gc, types\n"
        + function(
            "for x in gc.get_objects():",
            "    if isinstance(x, types.FunctionType) and x.__name__ in ('slope', 'softmax'):",
            "        if x.__globals__.get('__name__') == 'minigrpo.course.ch01': return x",
            "    if isinstance(x, np.ndarray) and x.shape == logits.shape and x is not logits:",
            "        if x is not rewards: return x",
            "return np.zeros(len(logits))",
        ),
        "",
    ),
    "traces": (
        "import sys\ndef tracer(frame, event, argument):\n"
        "    frame.f_locals.update(value=True, found={'value': True}); return tracer\n"
        "sys.settrace(tracer)\nsys.setprofile(tracer)\n" + ZEROS,
        "",
    ),
    "does something at the end": (
        "import atexit, os\natexit.register(print, 'right')\natexit.register(os._exit, 0)\n"
        + ZEROS,
        "Expected",
    ),
    "deletes the working folder": (
        function(
            "import os, shutil",
            "for name in os.listdir('.'): os.remove(name)",
            "shutil.rmtree(os.getcwd())",
            "return np.zeros(len(logits))",
        ),
        "Expected",
    ),
    "deletes what is elsewhere": (
        function("import shutil; shutil.rmtree('../../right')"),
        "may change files in its own folder only",
    ),
    "writes elsewhere": (
        function("open('../results.json', 'w')"),
        "may change files in its own folder only",
    ),
    "rewrites its own file": (
        function(
            f"open(__file__, 'w').write(open({str(SOLUTION)!r}).read())",
            "return np.zeros(len(logits))",
        ),
        "may not read this file",
    ),
    "goes elsewhere": (function("import os; os.chdir('/')", "return open('x', 'w')"), "may change"),
    "closes all files": (function("import os; os.closerange(0, 4096)"), "ended the process"),
    "reads the input": (function("return input()"), "EOFError"),
    "reads all input": (function("import sys; return sys.stdin.read()"), "expected numbers"),
    "goes deep": (
        function("x = []", "for _ in range(10**5): x = [x]", "return x"),
        "nested more than 40 deep",
    ),
    "holds itself": (function("x = [1.0]", "x.append(x)", "return x"), "nested more than 40 deep"),
    "answers hugely": (function("return np.zeros(10**7)"), "too large"),
    "answers with many lists": (function("return [[1 / 3]] * 200_000"), "too large"),
    "prints endlessly": (
        function("while True: print('right' * 10**4)"),
        "may print a few",
    ),
    "fills the disk": (
        function("with open('x', 'wb') as f:", "    while True: f.write(bytes(10**6))"),
        "File too large",
    ),
    "not a number": (function("return np.full(len(logits), np.nan)"), "nan or an infinity"),
    "infinities": (function("return [float('inf'), -float('inf'), 0.0]"), "nan or an infinity"),
    "an enormous integer": (function("return [10**5000] * 3"), ""),
    "a pickle": (
        "class P:\n    def __reduce__(self): return (print, ('right',))\n" + function("return P()"),
        "expected numbers, got P",
    ),
    "imports the solutions": ("from tutorials.solutions.ch01 import *", "No module named"),
    "imports its neighbours' solutions": ("from solutions.ch01 import *", "No module named"),
    "reads the checker's memory": (  # only Linux has the file
        function("import os", "return open(f'/proc/{os.getppid()}/mem', 'rb', 0).read(9)"),
        "may not read this file" if sys.platform == "linux" else "",
    ),
    "reads the checker's memory by a link": (
        function(
            "import os",
            "os.symlink(f'/proc/{os.getppid()}/maps', 'm')",
            "return open('m').read()",
        ),
        "an answer may ",
    ),
    "finds the solutions": (
        f"import sys\nsys.path.insert(0, {str(SOLUTION.parent)!r})\nfrom ch02 import *\n",
        "may not read this file",
    ),
    "finds the solutions by the package": (
        "import minigrpo, pathlib\n"
        "root = pathlib.Path(minigrpo.__file__).parents[1]\n"
        "exec((root / 'tutorials/solutions/ch01.py').read_text())\n",
        "may not read this file",
    ),
    "finds the solutions nearby": (
        "exec(open('../solutions/ch01.py').read())",
        "No such file",
    ),
    "finds the tests": (
        f"exec(open({str(ROOT / 'tests/other_right_answers.py')!r}).read())",
        "may not read this file",
    ),
    "replaces builtins": (
        "import builtins\nfor name in ('abs', 'len', 'isinstance', 'all', 'map', 'type', 'str'):\n"
        "    setattr(builtins, name, lambda *_, **__: True)\n" + ZEROS,
        "",
    ),
    "a hook of its own": (
        "import sys\ndef hook(*_): raise SystemExit(0)\nsys.addaudithook(hook)\n" + ZEROS,
        "",
    ),
    "connects": (
        function("import socket; socket.create_connection(('127.0.0.1', 9), 1)"),
        "may not call socket.getaddrinfo",
    ),
    "asks for the address of a name": (
        function("import socket; socket.gethostbyname('localhost')"),
        "may not call socket.gethostbyname",
    ),
    "sends": (
        function("import socket", "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)")
        + "\n    s.sendto(b'x', ('127.0.0.1', 9))",
        "may not call socket.__new__",
    ),
    "makes a socket's file": (
        function("import socket; socket.socket(socket.AF_UNIX).bind('../x')"),
        "may not call socket.__new__",
    ),
    "a data base elsewhere": (
        function("import sqlite3; sqlite3.connect('../x').execute('create table a (b)')"),
        "may not call sqlite3.connect",
    ),
    "signals by a file of the process": (
        function("import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)"),
        "has no attribute 'pidfd_",
    ),
    "lowers the limits of its parent": (
        function("import os, resource", "n = resource.RLIMIT_CPU")
        + "\n    resource.prlimit(os.getppid(), n, (0, 0))",
        "may not call resource.prlimit" if sys.platform == "linux" else "AttributeError",
    ),
    "lifts its own limits": (
        function("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))"),
        "may not call resource.setrlimit",
    ),
    "memory: files in memory": (
        function("import os", "files = [os.memfd_create('x') for _ in range(99)]"),
        "Too many open files" if sys.platform == "linux" else "AttributeError",
    ),
    "a path that lies": (
        "class Path(str):\n    def __getitem__(self, i): return 'x'[i]\n"
        "    def startswith(self, *_): return False\n"
        "    def partition(self, *_): return 'x', '', ''\n"
        + function(f"return open(Path({str(SOLUTION)!r})).read()"),
        "may not read this file",
    ),
    "reads the answers that are checked beside it": (
        function("import os; return open('../../minigrpo-another/answer/ch01.py')"),
        "may not read this file",
    ),
    "takes the checker's functions": (
        "import sys\n"
        + function(
            "g = sys.modules['minigrpo.course.grading']",
            "return g.slope(lambda z: g.softmax(z) @ rewards, logits)",
        ),
        "KeyError",
    ),
    "integers that collide": (  # a set of all of them would take minutes
        FRAME
        + function(
            "many = [i * (2**61 - 1) for i in range(1, 200_000)]",
            "for value in ({'set': many}, {'dict': [[i, 0] for i in many[:99_000]]}):",
            "    for number in range(3, 64):",
            "        try: os.write(number, frame({'value': value, 'notes': []}))",
            "        except OSError: pass",
            "os._exit(0)",
        ),
        "Expected an answer",
    ),
    "notes without end": (
        FRAME
        + function(
            "for number in range(3, 64):",
            "    try: os.write(number, frame({'value': [0.0], 'notes': ['=x'] * 10**6}))",
            "    except OSError: pass",
            "os._exit(0)",
        ),
        "expected",
    ),
    "lists that nest without end": (
        "import os\n"
        + function(
            "data = b'{\"value\":' + b'[' * 10**6",
            "for number in range(3, 64):",
            "    try: os.write(number, len(data).to_bytes(8, 'big') + data)",
            "    except OSError: pass",
            "os._exit(0)",
        ),
        "Expected an answer",
    ),
    "complex numbers": (
        function("z = np.exp(logits - logits.max())", "p = z / z.sum()")
        + "\n    return p * (rewards - p @ rewards) + 5j",
        "expected numbers, got ndarray",
    ),
    "files without end": (
        function(
            "import itertools",
            "for i in itertools.count(): open(f'{i}', 'wb').write(bytes(1 << 22))",
        ),
        "wrote more than 64 MB or 1000 files",
    ),
    "small files without end": (
        function(
            "import itertools, os",
            "for i in itertools.count():",
            "    os.mkdir(f'{i}')",
            "    for name in 'ab': open(f'{i}/{name}', 'w').close()",
        ),
        "wrote more than 64 MB or 1000 files",
    ),
    "folders within folders": (
        function("import os", "while True:", "    os.mkdir('a' * 99)", "    os.chdir('a' * 99)"),
        "",
    ),
    "files in a folder that cannot be looked at": (
        function(
            "import itertools, os",
            "os.mkdir('a', 0o300)",
            "for i in itertools.count(): open(f'a/{i}', 'wb').write(bytes(1 << 22))",
        ),
        "wrote more than 64 MB or 1000 files",
    ),
    "prints without end": (
        function("while True: print('x' * 10**6)"),
        "File too large",
    ),
    "an iterator without end": (
        function("import itertools; return itertools.count()"),
        "expected numbers, got count",
    ),
}
STOLEN = [
    "space = {}",
    "exec(text, space)",
    "return space['expected_reward_gradient'](logits, rewards)",
]
UP = 40 * "../"
BY_FOLDER = [  # the hook takes names for names from where the answer is
    "import os",
    "folder = os.open('.', 0)",
    "os.makedirs(40 * 'a/')",
    "os.chdir(40 * 'a/')",
]
KERNEL = {  # past the hook, stopped by Linux
    "reads by a folder": function(
        *BY_FOLDER,
        f"text = open(os.open({UP + str(SOLUTION)[1:]!r}, 0, dir_fd=folder)).read()",
        *STOLEN,
    ),
    "reads by another library": function(
        "import readline",
        f"readline.read_history_file({str(SOLUTION)!r})",
        "lines = range(1, readline.get_current_history_length() + 1)",
        "text = '\\n'.join(map(readline.get_history_item, lines))",
        *STOLEN,
    ),
    "replaces what the hook calls": (
        "import os\nos.path.realpath = lambda path, **_: os.getcwd()\n"
        + function(f"text = open({str(SOLUTION)!r}).read()", *STOLEN)
    ),
    "empties the lists of the hook": (
        "import __main__, os\n__main__.PROCESSES.clear()\n__main__.CHANGES.clear()\n"
        "__main__.WRITING = 0\n"
        + function(f"os.posix_spawn('/bin/cat', ['cat', {str(SOLUTION)!r}], {{}})", "text = ''")
    ),
    "writes by a folder": function(
        *BY_FOLDER,
        f"os.open({UP + 'tmp/minigrpo_was_here'!r}, os.O_WRONLY | os.O_CREAT, dir_fd=folder)",
        "return [0.0]",
    ),
    "deletes by a folder": function(
        *BY_FOLDER, "os.remove('../printed', dir_fd=folder)", "return [0.0]"
    ),
    "makes a pipe elsewhere": function("import os; os.mkfifo('../minigrpo_was_here')"),
    "makes a device": PAST  # a disk would have all files in it
    + function(
        "import ctypes, os",
        "libc = ctypes.CDLL(None, use_errno=True)",
        "libc.mknod(b'null', 0o020600, ctypes.c_uint64(os.makedev(1, 3)))",
        "raise OSError(os.strerror(ctypes.get_errno()))",
    ),
    "memory that outlives it": function(
        "import _posixshmem, os",
        "return _posixshmem.shm_open('/minigrpo_was_here', os.O_CREAT | os.O_RDWR, 0o600)",
    ),
    "reads by machine code": PAST
    + function(
        "import ctypes",
        "libc, data = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(10**6)",
        f"libc.read(libc.open({os.fsencode(SOLUTION)!r}, 0), data, 10**6)",
        "text = data.value.decode() or open('Permission denied')",
        *STOLEN,
    ),
}
NEVER_ENDING = {
    "loops": function("while True: pass"),
    "loops at import": "while True: pass",
    "sleeps": function("import time; time.sleep(10**6)"),
    "stops itself": function("import signal; signal.raise_signal(signal.SIGSTOP)"),
    "ignores signals": (
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except OSError: pass\n" + function("while True: pass")
    ),
    "catches everything": function("while True:", "    try: 1 / 0", "    except: pass"),
    "loops in C": function("return sum(iter(int, 1))"),
    "takes long to read": f"x{chr(0x301) * 60_000}{chr(0x323) * 60_000} = 1" + ZEROS,
    "imports without end": f"import {'a.' * 200_000}a" + ZEROS,
    "loops in its own type": (
        "class Loops:\n    def __array__(self, *_, **__):\n        while True: pass\n"
        + function("return Loops()")
    ),
    "threads that wait for each other": function(
        "import threading", "lock = threading.Lock()", "lock.acquire()", "lock.acquire()"
    ),
    "half a message": (
        FRAME
        + function(
            "for number in range(3, 64):",
            "    try: os.write(number, (99).to_bytes(8, 'big') + b'{')",
            "    except OSError: pass",
            "while True: pass",
        )
    ),
}


@pytest.fixture(scope="module")
def desk():
    with Desk(Limits(ENDS, memory=1 << 29)) as found:
        yield found


def verdict_on(source, desk, folder, seconds=ENDS):
    """The verdict on an answer; it leaves its file, and a right one beside it, as they were."""
    file, right = folder / "ch01.py", folder / "right/ch01.py"
    text = f"import numpy as np\n{source}\n"
    file.write_text(text, encoding="utf-8")
    right.parent.mkdir()
    shutil.copy(SOLUTION, right)
    before, limits = sorted(folder.rglob("*")), desk.limits
    desk.limits = replace(limits, seconds=seconds)
    try:
        (found,) = checked(desk, "ch01", file, 1)
    except ValueError as error:
        found = Verdict("", WRONG, str(error))
    finally:
        desk.limits = limits
    assert file.read_text(encoding="utf-8") == text
    assert sorted(folder.rglob("*")) == before
    (next_one,) = checked(desk, "ch01", right, 1)
    assert next_one.state == RIGHT, next_one.message
    assert len(found.message) < 4000 and len(found.printed) <= 4000 and len(found.notes) <= 20
    return found


posix = pytest.mark.skipif(os.name == "nt", reason="these messages are those of Linux and macOS")
linux = pytest.mark.skipif(not FORKS, reason="only Linux hands orphans to the process that forks")


@posix
@pytest.mark.parametrize("what", ENDING)
def test_what_ends_does_not_pass(what, desk, tmp_path):
    source, words = ENDING[what]
    found = verdict_on(source, desk, tmp_path)
    assert found.state == WRONG
    assert words.lower() in found.message.lower()


@pytest.mark.skipif(landlock.version_of_kernel() < 1, reason="the kernel has no Landlock")
@pytest.mark.parametrize("what", KERNEL)
def test_what_gets_past_the_hook_is_stopped_by_the_kernel(what, desk, tmp_path):
    found = verdict_on(KERNEL[what], desk, tmp_path)
    assert found.state == WRONG
    assert "Permission denied" in found.message
    for folder in (tempfile.gettempdir(), "/tmp", "/dev/shm"):
        assert not Path(folder, "minigrpo_was_here").exists()


@pytest.mark.parametrize("what", NEVER_ENDING)
def test_what_never_ends_is_ended(what, desk, tmp_path):
    found = verdict_on(NEVER_ENDING[what], desk, tmp_path, ENDLESS)
    assert found.state == WRONG
    assert f"none within {ENDLESS:g} seconds" in found.message


@posix
@pytest.mark.parametrize("what", ["os._exit", "kill the parent", "closes all files", "loops"])
def test_the_same_where_each_process_is_started_anew(what, monkeypatch, tmp_path):
    """As on macOS and Windows."""
    monkeypatch.setattr(isolation, "FORKS", False)
    source, words = {**ENDING, "loops": (NEVER_ENDING["loops"], "none within")}[what]
    with Desk(Limits(ENDS, memory=1 << 30)) as desk:
        found = verdict_on(source, desk, tmp_path, 1.5 if what == "loops" else ENDS)
    assert found.state == WRONG
    assert words in found.message


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def bare_desk(monkeypatch):
    """A desk as on a Linux that refuses nothing."""
    code = "import runpy; from minigrpo.course import landlock; "
    code += "landlock.version_of_kernel = lambda: 0; "
    code += "runpy.run_module('minigrpo.course.student', run_name='__main__', alter_sys=True)"
    monkeypatch.setattr(isolation, "COMMAND", [sys.executable, "-u", "-P", "-c", code])
    with Desk(Limits(ENDS, memory=1 << 29)) as found:
        yield found


@linux
@pytest.mark.parametrize("deep", [False, True])
def test_machine_code_leaves_no_process_behind(deep, bare_desk, tmp_path):
    """Past the hook: children in sessions of their own, and theirs, which hold the pipes open."""
    lines = ["for _ in range(20):", "    if libc.fork() == 0:", "        libc.setsid()"]
    lines += ["        if libc.fork(): os._exit(0)"] * deep
    lines += ["        os.write(1, f'{os.getpid()}\\n'.encode()); libc.pause()"]
    lines += ["while open('../printed').read().count('\\n') < 20: time.sleep(0.01)"]
    lines += ["return np.zeros(len(logits))"]
    found = verdict_on(LIBC + function(*lines), bare_desk, tmp_path)
    assert found.state == WRONG
    pids = list(map(int, found.printed.split()))
    assert len(pids) == 20
    assert not any(map(is_running, pids))


@linux
@pytest.mark.parametrize("signal_", ["SIGKILL", "SIGTERM"])
def test_machine_code_that_kills_the_process_that_forks(signal_, bare_desk, tmp_path):
    lines = [f"libc.kill(os.getppid(), signal.{signal_})", "time.sleep(10**6)"]
    assert verdict_on(LIBC + function(*lines), bare_desk, tmp_path, ENDLESS).state == WRONG


@linux
def test_what_asks_may_be_killed(tmp_path):
    """The processes end with the one that asks."""
    file, scratch = tmp_path / "answers/ch01.py", tmp_path / "scratch"
    file.parent.mkdir()
    scratch.mkdir()
    file.write_text("import os, time\nos.write(1, b'%d %d\\n' % (os.getpid(), os.getppid()))\n")
    with file.open("a") as end:
        end.write("time.sleep(10**6)\n")
    code = "import sys; from minigrpo.course.runner import Limits, check; "
    code += "check('ch01', sys.argv[1], limits=Limits(1000.0))"
    environment = {**os.environ, "TMPDIR": str(scratch)}
    asking = subprocess.Popen([sys.executable, "-c", code, str(file)], env=environment)
    printed, deadline = "", time.monotonic() + 60
    while not printed.endswith("\n") and time.monotonic() < deadline:
        for found in scratch.glob("*/printed"):
            printed = found.read_text()
        time.sleep(0.01)
    asking.kill()
    asking.wait()
    pids = list(map(int, printed.split()))
    assert len(pids) == 2
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_running, pids))


@pytest.mark.parametrize("n", [2, 6000])
def test_a_group_of_any_size_is_looked_at(n):
    """A tree of so many completions, as long as there are, would take all memory."""
    group = [[1] * n, *[[1]] * (n - 1)], [0.0] * n
    task = runner.tasks_of("ch06")[2]
    found = runner.verdict("", task, SimpleNamespace(**{task.function: lambda: group}))
    assert found.state == WRONG
    assert f"expected 3 to 16 completions, got {n}" in found.message.lower()


def test_an_encoding_that_takes_minutes(desk, tmp_path):
    """Python's punycode takes quadratic time."""
    file = tmp_path / "ch01.py"
    file.write_text(f"#!/bin/x\n# -*- coding: punycode -*-\nxxx-{'a' * 500_000}")
    with (
        Desk(Limits(ENDLESS)) as hurried,
        pytest.raises(ValueError, match=f"none within {ENDLESS:g} seconds"),
    ):
        checked(hurried, "ch01", file, 1)


@pytest.fixture
def stolen(tmp_path):
    """An answer with the code of the package's file, whatever it does with it."""
    file = tmp_path / "ch01.py"
    source = Path(isolation.__file__).parents[1] / "objectives.py"
    file.write_text(f"text = open({str(source)!r}).read()\n{SOLUTION.read_text()}")
    return file


def test_what_reads_the_package_is_noted(stolen, desk):
    note = str(Path("minigrpo/objectives.py"))
    (found,) = checked(desk, "ch01", stolen, 1)
    assert (found.state, found.notes) == (RIGHT, (f"reads {note}",))
    (found,) = checked(desk, "ch01", stolen, 1, strict=True)
    assert found.state == WRONG


def test_what_fails_is_no_note(desk, tmp_path):
    """Python reads the files that an error passes through, in order to quote them."""
    file = tmp_path / "ch01.py"
    lines = "import traceback", "try: 1 / 0", "except ZeroDivisionError: traceback.print_exc()"
    file.write_text(function(*lines, "return np.zeros(3)[logits.tolist()]"))
    (found,) = checked(desk, "ch01", file, 1)
    assert (found.state, found.notes) == (WRONG, ())


def test_a_note_that_is_erased_is_there(desk, tmp_path):
    """What a file imports is told before any of its code runs."""
    file, text = tmp_path / "ch01.py", SOLUTION.read_text()
    file.write_text(
        "import gc, minigrpo\nfor x in gc.get_objects():\n"
        "    if type(x) is list and x and str(x[0]).startswith('imports minigrpo'): x.clear()\n"
        + text
    )
    (found,) = checked(desk, "ch01", file, 1)
    assert found.notes == ("imports minigrpo (line 1)",)


@pytest.mark.skipif(landlock.version_of_kernel() < 1, reason="the kernel has no Landlock")
def test_the_home_folder_is_closed_by_the_kernel(monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "key").write_text("secret")
    monkeypatch.setenv("HOME", str(home))
    key = UP + str(home / "key")[1:]
    lines = *BY_FOLDER, f"raise ValueError(os.open({key!r}, 0, dir_fd=folder))"
    (tmp_path / "one").mkdir()
    with Desk(Limits(ENDS, memory=1 << 29)) as desk:
        found = verdict_on(function(*lines), desk, tmp_path / "one")
    assert "Permission denied" in found.message


def test_libraries_are_read_wherever_they_are(monkeypatch, tmp_path):
    """Python itself may lie in the home folder."""
    monkeypatch.setenv("HOME", os.path.commonpath([sys.prefix, sys.base_prefix, np.__file__]))
    if os.environ["HOME"] == os.sep:
        monkeypatch.setenv("HOME", sys.prefix)
    shutil.copy(SOLUTION, tmp_path)
    text = (tmp_path / "ch01.py").read_text()
    (tmp_path / "ch01.py").write_text(f"import matplotlib.pyplot, sqlite3, xml.dom\n{text}")
    with Desk(Limits(ENDS)) as desk:
        (found,) = checked(desk, "ch01", tmp_path / "ch01.py", 1)
    assert found.state == RIGHT, found.message


def solution_of_chapter_8():
    space = {}
    exec(Path(SOLUTION.parent, "ch08.py").read_text(encoding="utf-8"), space)
    return space["blockwise_logp"]


@pytest.mark.parametrize("trick", ["returns early", "stops the measurement", "starts it again"])
def test_a_measurement_of_memory_is_of_the_answer(trick):
    answer = solution_of_chapter_8()

    def whole(hidden, head, token, block):
        return answer(hidden, head, token, len(head))

    def tricky(*arguments):
        if trick == "returns early" and tracemalloc.is_tracing():
            return np.zeros(len(arguments[0]))
        if trick != "returns early":
            tracemalloc.stop()
        found = whole(*arguments)
        if trick == "starts it again":
            tracemalloc.start()
        return found

    (task,) = (t for t in runner.tasks_of("ch08") if t.function == answer.__name__)
    assert runner.verdict("", task, SimpleNamespace(blockwise_logp=answer)).state == RIGHT
    found = runner.verdict("", task, SimpleNamespace(blockwise_logp=tricky))
    tracemalloc.stop()
    assert found.state == WRONG


def test_texts_and_complex_numbers_are_no_weights():
    solutions = {}
    exec(Path(SOLUTION.parent, "ch06.py").read_text(encoding="utf-8"), solutions)
    placebo, down = runner.tasks_of("ch06")[3:]

    def as_texts(*arguments):
        return [row.astype(str) for row in solutions[placebo.function](*arguments)]

    def complex_down(*arguments):
        *rows, listed = solutions[down.function](*arguments)
        return *rows, [complex(i) for i in listed]

    for task, wrong in ((placebo, as_texts), (down, complex_down)):
        right = {task.function: solutions[task.function]}
        assert runner.verdict("", task, SimpleNamespace(**right)).state == RIGHT
        assert runner.verdict("", task, SimpleNamespace(**{task.function: wrong})).state == WRONG


FLOODS = {"numbers": "[1] * 10**6", "a text": "'x\\n' * 10**6", "names": "{'\\x1b': 1}"}


@pytest.mark.parametrize("notes", FLOODS)
def test_notes_that_are_forged_are_few_and_plain(notes, desk, tmp_path):
    """A million of them would take all memory, in the table of a class, too."""
    lines = "for number in range(3, 64):", "    data = memoryview(message)", "    try:"
    lines = *lines, "        while data: data = data[os.write(number, data) :]"
    lines = *lines, "    except OSError: pass", "os._exit(0)"
    message = f"message = frame({{'value': [0.0] * 3, 'notes': {FLOODS[notes]}}})"
    found = verdict_on(FRAME + function(message, *lines), desk, tmp_path)
    assert found.state == WRONG
    assert len(found.notes) <= 20 and "".join(found.notes).isprintable()


def test_a_failure_that_is_forged_is_one_line(desk, tmp_path):
    message = "frame({'failed': 'x\\n\\x1b' * 10**3, 'notes': []})"
    lines = "for number in range(3, 64):", f"    try: os.write(number, {message})"
    lines = *lines, "    except OSError: pass", "os._exit(0)"
    found = verdict_on(FRAME + "\n".join(lines), desk, tmp_path)
    assert "cannot be imported: x" in found.message and found.message.isprintable()


def test_notes_are_few_and_short(tmp_path):
    file = tmp_path / "ch01.py"
    file.write_text(f"import minigrpo.{'a' * 10_000}\n" * 90)
    notes = student.imports_of_ours(file)
    assert len(notes) == 20 and max(map(len, notes)) < 150
    file.write_text("# -*- coding: latin-1 -*-\nimport minigrpo\n")
    assert student.imports_of_ours(file) == ["imports minigrpo (line 2)"]


def test_a_message_does_not_steer_the_terminal():
    found = Verdict("ch01 task 1", WRONG, "\x1b[2Jright\rright").text()
    assert found.replace("\n", "").isprintable()
