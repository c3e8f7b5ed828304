"""Several machines on this one: namespaces with a network address, a hostname, processes and a disk
of their own.

Of the machine's files a host can read what is there and write none; `/tmp` is its own disk. All its
processes end with the first one, which ends when the test process closes its pipe or dies, and
with them go its network and its mounts: nothing is left, however the test ends.
"""

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

CODE = Path(__file__).parents[1]
DISK = "/tmp"  # of a host, where Ray and pytest write as well
NETWORK = "10.213.77"
GATEWAY = f"{NETWORK}.1"
GCS_PORT = 6379
TRIES = 3
BIN = Path(sys.executable).parent

# Hostnames resolve to loopback, as most distributions have it.
_SETUP = """
disk=$1 name=$2 code=$3 own=$4
mount --make-rprivate /
inner=$disk${code#"$own"}
case $code in "$own"/*) mkdir -p "$inner"; mount --bind "$code" "$inner";; esac
printf '127.0.0.1 localhost %s\\n' "$name" > "$disk/hosts"
mount --bind "$disk/hosts" /etc/hosts
mount --rbind "$disk" "$own"
mount -t tmpfs none /dev/shm
mount -o remount,bind,ro /
[ ! -d "$code" ] || case $code in "$own"/*) mount -o remount,bind,ro "$code";; esac
hostname "$name"
ip link set lo up
trap '' CHLD
echo up
exec cat > /dev/null
"""


class Host:
    """A machine.

    Attributes:
        address: its own, which the others reach.
        environment: of the commands that run on it.
    """

    def __init__(self, name, address, disk):
        self.name, self.address = name, address
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": f"{DISK}/home",
            "PYTHONPATH": str(CODE),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self._disk = disk
        self._process = subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child",
             "--mount-proc", "sh", "-ec", _SETUP, "sh", disk, name, CODE, DISK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout.readline() == b"up\n"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self.pid = int(children.read_text())
        self.ray = None

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)

    def start(self, *command, **options):
        """A command on this machine, running."""
        inside = ["nsenter", "-t", str(self.pid), "-n", "-m", "-u", "-i", "-p", f"--wd={CODE}"]
        given = {"env": self.environment, "text": True} | options
        return subprocess.Popen([*inside, *map(str, command)], **given)

    def run(self, *command, timeout=120, fails=False, **options):
        """What a command on this machine says, on stdout and stderr; its errors are the test's."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
        process = self.start(*command, **streams)
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(process.communicate()[0][-4000:]) from None
        assert bool(process.returncode) == fails, said[-4000:]
        return said

    def clipray(self, *arguments, **options):
        return self.run(sys.executable, "-m", "clipray.cli", *arguments, **options)

    def begin(self, *arguments, **options):
        """A clipray command, running."""
        return self.start(sys.executable, "-m", "clipray.cli", *arguments, **options)

    def signal(self, number):
        """Send a signal to the clipray commands that run here."""
        for pid in _inside(self.pid):
            with suppress(OSError):
                if b"clipray.cli" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, number)

    def file(self, path):
        """A path of this machine, as the test process sees it."""
        return self._disk / Path(path).relative_to(DISK)

    def send(self, path, other):
        """Copy a folder or file to the same place of another machine, as scp would."""
        folder, name = shlex.quote(str(Path(path).parent)), shlex.quote(Path(path).name)
        packing = self.start("sh", "-c", f"tar -C {folder} -cf - {name}", stdout=subprocess.PIPE)
        taking = f"mkdir -p {folder} && tar -C {folder} -xf -"
        other.run("sh", "-c", taking, stdin=packing.stdout)
        packing.stdout.close()
        assert packing.wait() == 0

    def take(self, path, place):
        """Copy a folder or file of the test's to this machine."""
        target = self.file(place)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if Path(path).is_dir() else shutil.copy
        copy(path, target)

    def start_ray(self, head, cpus=2):
        """Be the head, or join it; commands here use the cluster from now on."""
        alone = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        where = "--head" if head is self else f"--address={head.address}:{GCS_PORT}"
        said = self.file(f"{DISK}/ray-said")
        for _ in range(TRIES):  # Ray gives up after half a minute, which a busy machine may need
            self.ray = self.start(
                BIN / "ray", "start", "--block", where, f"--num-cpus={cpus}",
                f"--labels=clipray-node={self.name}", "--object-store-memory=100000000",
                env=alone,
                stdout=said.open("w"),
                stderr=subprocess.STDOUT,
            )  # fmt: skip
            while self.ray.poll() is None:
                if "Ray runtime started" in said.read_text():
                    self.environment["RAY_ADDRESS"] = f"{head.address}:{GCS_PORT}"
                    return
                time.sleep(0.5)
        raise AssertionError(said.read_text()[-4000:])

    def crash(self):
        """kill -9 of all that runs on this machine; its disk stays."""
        for pid in _inside(self.pid) - {self.pid}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.ray.wait()


def require_hosts():
    """Skip where no namespaces can be made."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "unshare", "nsenter", "mount", "tar"))):
        pytest.skip("needs root, iproute2 and util-linux to make machines of namespaces")
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-ec",
         "mount -t tmpfs none /mnt; ip link add veth-a type veth peer veth-b; hostname a"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        pytest.skip(f"no namespaces can be made here: {tried.stderr.strip()[-200:]}")


@contextmanager
def hosts(*names):
    """Machines on one network; there is a gateway more, which joins their cables.

    Yields:
        the machines, in order, then the gateway.
    """
    require_hosts()
    token = secrets.token_hex(32)
    with ExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="clipray-hosts-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        made = [
            _host(stack, scratch, name, f"{NETWORK}.{number}")
            for number, name in enumerate(("gateway", *names), 1)
        ]
        gateway, *others = made
        _in(gateway, "ip link add lan type bridge", f"ip addr add {GATEWAY}/24 dev lan",
            "ip link set lan up")  # fmt: skip
        for host in others:
            host.environment |= {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": token,
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_BACKEND_LOG_LEVEL": "fatal",
            }
            _plug(host, gateway)
        yield [*others, gateway]


def _host(stack, scratch, name, address):
    disk = scratch / name
    (disk / "home").mkdir(parents=True)
    host = Host(name, address, disk)
    stack.callback(host.close)
    return host


def _plug(host, gateway):
    cable = f"to-{host.name}"[:15]
    ends = ["type", "veth", "peer", "name", "eth0", "netns", str(host.pid)]
    subprocess.run(["ip", "link", "add", cable, "netns", str(gateway.pid), *ends], check=True)
    _in(gateway, f"ip link set {cable} master lan up")
    _in(host, f"ip addr add {host.address}/24 dev eth0", "ip link set eth0 up",
        f"ip route add default via {GATEWAY}")  # fmt: skip


def _in(host, *commands):
    for command in commands:
        host.run(*command.split())


def _inside(pid):
    """Processes of the namespace of one."""
    found, namespace = set(), Path(f"/proc/{pid}/ns/pid").readlink()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "ns/pid").readlink() == namespace:
                found.add(int(entry.name))
    return found
