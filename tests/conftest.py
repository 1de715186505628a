"""What holds for every test: quiet threads, fixed seeds, an empty folder to work in, no network, no unexpected skip."""

import os

# Before anything imports torch or numpy: tests share few cores, and one thread makes sums reproducible.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import errno
import fnmatch
import ipaddress
import random
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell that starts something in the background lets it ignore Ctrl-C, and children inherit that; some tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
EXPECTED_SKIPS = Path(__file__).with_name("expected-skips")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, without the settings of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LEARNMECH_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Fix the seed of every generator that is loaded already; a test that draws numbers states its own seed."""
    random.seed(0)
    if hasattr(numpy := sys.modules.get("numpy"), "random"):
        numpy.random.seed(0)
    if hasattr(torch := sys.modules.get("torch"), "manual_seed"):
        torch.manual_seed(0)


# --- no network but loopback -----------------------------------------------------------------------------------------

# Names and addresses reserved for examples (RFC 2606, RFC 5737): a test may aim at them to see a refusal.
RESERVED_NAMES = (".invalid", ".test", ".example")
RESERVED_NETWORKS = tuple(map(ipaddress.ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")))
_attempts: list[str] = []


def _own_names() -> frozenset[str]:
    own = socket.gethostname()
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(own, None)}
    except OSError:
        addresses = set()
    return frozenset({"localhost", "", own, *addresses})


OWN_NAMES = _own_names()


def _verdict(host: str) -> str:
    """`local`, `reserved` or `outside`, for a name or an address."""
    if host in OWN_NAMES:
        return "local"
    if host.endswith(RESERVED_NAMES):
        return "reserved"
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "outside"
    if address.is_loopback or address.is_unspecified:
        return "local"
    reserved = any(address in network for network in RESERVED_NETWORKS if network.version == address.version)
    return "reserved" if reserved else "outside"


def _refuse(host: str, call: str) -> bool:
    verdict = _verdict(host)
    if verdict == "outside":
        _attempts.append(f"{call} to {host}")
    return verdict != "local"


@pytest.fixture(scope="session", autouse=True)
def _guarded_sockets() -> Iterator[None]:
    """Let sockets reach this machine only. Extensions in C and subprocesses are out of its reach."""
    connect, connect_ex, sendto = socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto
    getaddrinfo = socket.getaddrinfo

    def outside(self, address, call):
        internet = self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple)
        return internet and _refuse(str(address[0]), call)

    def guarded_connect(self, address):
        if outside(self, address, "connect"):
            raise OSError(errno.ENETUNREACH, f"tests have no network: {address}")
        return connect(self, address)

    def guarded_connect_ex(self, address):
        return errno.ENETUNREACH if outside(self, address, "connect") else connect_ex(self, address)

    def guarded_sendto(self, data, *rest):
        if outside(self, rest[-1], "sendto"):
            raise OSError(errno.ENETUNREACH, f"tests have no network: {rest[-1]}")
        return sendto(self, data, *rest)

    def guarded_getaddrinfo(host, *args, **kwargs):
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and _refuse(name, "look-up"):
            raise socket.gaierror(socket.EAI_NONAME, f"tests have no network: {name}")
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket.socket, "sendto", guarded_sendto)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def _no_network(_guarded_sockets: None) -> Iterator[None]:
    """Fail the test that reached outside, even when the code under test swallowed the refusal."""
    _attempts.clear()
    yield
    if _attempts:
        pytest.fail(f"reached for the network ({', '.join(sorted(set(_attempts)))}); use 127.0.0.1", pytrace=False)


# --- skips are loud, and in CI each one is expected or fails the run --------------------------------------------------


class Skips:
    """Collects the skips of a run; those not listed in `tests/expected-skips` fail it when CI is set."""

    def __init__(self, expected: list[str]) -> None:
        self.expected = expected
        self.unexpected: list[tuple[str, str]] = []

    def note(self, nodeid: str, reason: str) -> None:
        """Keep a skip that no line of the list covers."""
        if not any(fnmatch.fnmatchcase(nodeid, pattern) for pattern in self.expected):
            self.unexpected.append((nodeid, reason))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """See a test that was skipped, by a mark or from inside."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self.note(report.nodeid, str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """See a module that was skipped whole."""
        if report.skipped:
            self.note(report.nodeid, str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Turn a run with unexpected skips into a failure."""
        if self.unexpected and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which, and where to expect them."""
        if self.unexpected:
            terminalreporter.section("unexpected skips", red=True, bold=True)
            for nodeid, reason in self.unexpected:
                terminalreporter.line(f"{nodeid}: {reason}")
            terminalreporter.line("CI runs every test; a skip that must be is listed in tests/expected-skips")


def pytest_configure(config: pytest.Config) -> None:
    """Guard against skips where nobody reads the summary."""
    if os.environ.get("CI", "").lower() in ("", "0", "false"):
        return
    lines = EXPECTED_SKIPS.read_text(encoding="utf-8").splitlines()
    nodes = [line.split(" # ")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    patterns = [node.replace("[", "[[]") for node in nodes]  # brackets belong to parametrised node ids
    config.pluginmanager.register(Skips(patterns), "learnmech-skips")
