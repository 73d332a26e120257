"""No network: no command opens a connection or asks for a name, not in its native libraries and not in its workers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .battery import Job, NotRun, Trial, battery
from .kills import BUDGET, planned_run
from .processes import Command

SECONDS = 400.0  # that a command may take
# Loaded before all libraries (LD_PRELOAD), so that native code is heard, too; loopback and local sockets are nobody's business.
LISTENER = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static void note(const char *what, const char *where) {
    const char *path = getenv("TORTURE_CONNECTIONS");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) { fprintf(file, "%s %s\n", what, where); fclose(file); }
}

static void note_address(const char *what, const struct sockaddr *to) {
    char text[64] = "";
    if (!to || (to->sa_family != AF_INET && to->sa_family != AF_INET6)) return;
    if (to->sa_family == AF_INET) inet_ntop(AF_INET, &((struct sockaddr_in *)to)->sin_addr, text, sizeof text);
    else inet_ntop(AF_INET6, &((struct sockaddr_in6 *)to)->sin6_addr, text, sizeof text);
    if (strncmp(text, "127.", 4) && strcmp(text, "::1")) note(what, text);
}

int connect(int fd, const struct sockaddr *to, socklen_t size) {
    note_address("connect", to);
    return ((int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect"))(fd, to, size);
}

ssize_t sendto(int fd, const void *data, size_t n, int flags, const struct sockaddr *to, socklen_t size) {
    note_address("sendto", to);
    return ((ssize_t (*)(int, const void *, size_t, int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "sendto"))(
        fd, data, n, flags, to, size);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    if (name && strcmp(name, "localhost") && strncmp(name, "127.", 4) && strcmp(name, "::1")) note("getaddrinfo", name);
    return ((int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))dlsym(RTLD_NEXT, "getaddrinfo"))(
        name, service, hints, found);
}
"""


@battery(
    "network",
    fault="no network",
    expected="no command opens a connection or asks for a name, `engine=onnx` and workers included",
    bar="0 connections",
    n=8,
)
def network(job: Job) -> Iterator[Trial]:
    """Runs commands with a listener before the C library's `connect`, `sendto` and `getaddrinfo`."""
    listener = _built(job.folder)
    run = planned_run(job.folder)
    commands = _commands(job.folder / "tiny", run, job.folder)
    job.chance.shuffle(commands)
    for index in range(job.n):
        words, heard = commands[index % len(commands)], job.folder / f"heard-{index}"
        what, environment = " ".join(words[:1] + [word for word in words if word.startswith("engine=")]), {}
        environment = {"LD_PRELOAD": str(listener), "TORTURE_CONNECTIONS": str(heard)}
        with Command(words, job.folder / f"command-{index}", **environment) as command:
            try:
                code = command.process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                yield Trial(what, None, found=f"it took more than {SECONDS:.0f} s")
                continue
        lines = heard.read_text().splitlines() if heard.exists() else []
        if code != 0 and not lines:
            yield Trial(what, None, found=f"it ended with exit code {code}: {command.text[-200:]}")
        else:
            yield Trial(what, not lines, found=f"{len(lines)} calls: {sorted(set(lines))[:5]}" if lines else "")


def _commands(tiny: Path, run: Path, folder: Path) -> list[list[str]]:
    model, engine = f"checkpoint={tiny}", "engine=onnx"
    return [
        ["doctor", model],
        ["compile", model, engine, "batch=[1]", f"cache={folder / 'engines'}"],
        ["plan", model, engine, "episodes=2", "workers=2", "steps=2", "videos=1", f"out={folder / 'plan'}", *BUDGET],
        ["imagine", model, engine, "episodes=2", "steps=2", f"out={folder / 'imagine'}"],
        ["evaluate", model, engine, "episodes=2", "steps=16", "horizons=[]", "planning=0", f"out={folder / 'evaluate'}"],
        ["train", "preset=tiny", f"out={folder / 'train'}"],
        ["report", str(run), f"out={folder / 'page.html'}"],
        ["subgoal", "env.options.spoken=true", "seed=17", f"out={folder / 'subgoal'}"],
    ]


def _built(folder: Path) -> Path:
    """The listener, compiled; it is heard when it speaks, or the battery does not run."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NotRun("it needs a C compiler")
    source, library, heard = folder / "listener.c", folder / "listener.so", folder / "heard"
    source.write_text(LISTENER)
    done = subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], capture_output=True, text=True)
    if done.returncode:
        raise NotRun(f"the listener was not compiled: {done.stderr[-200:]}")
    probe = "import socket; s = socket.socket(); s.settimeout(0.2); s.connect_ex(('192.0.2.1', 9))"  # nobody's address
    environment = {"LD_PRELOAD": str(library), "TORTURE_CONNECTIONS": str(heard), "PATH": "/usr/bin"}
    subprocess.run([sys.executable, "-c", probe], env=environment, timeout=60)
    if not heard.exists():
        raise NotRun("the listener hears nothing here")
    return library
