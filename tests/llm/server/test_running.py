"""A real server: clients that leave, read nothing or send nonsense, and the end by signals."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from infini.core import errors
from infini.llm.sampling.limits import Limits
from infini.llm.server import running
from infini.llm.server.settings import Settings, is_loopback
from tests.llm.server.conftest import chat
from tests.llm.server.live import request, rest, serving, wait_until
from tests.llm.server.scripted import Script, ScriptedEngine

ENDLESS = Script("abcdefgh", is_endless=True)


def endless(*_: object) -> Script:
    return ENDLESS


def long_engine(**options: object) -> ScriptedEngine:
    """An engine whose answers take minutes."""
    return ScriptedEngine(endless, delay_s=0.01, max_model_len=1 << 20, num_blocks=512, **options)  # type: ignore[arg-type]


# --- clients that leave -------------------------------------------------------------------


def test_all_blocks_come_back_after_200_clients_left_in_the_middle_of_their_streams() -> None:
    with serving(long_engine()) as live:
        clients = [live.connect() for _ in range(200)]
        for client in clients:
            client.sendall(request(chat(stream=True)))
        for client in clients:
            assert client.recv(10_000)
        wait_until(lambda: len(live.engine.running) == 200)
        for client in clients:
            client.close()
        wait_until(lambda: not live.engine.running)
        assert len(live.engine.aborted) == 200
        assert live.engine.stats().num_free_blocks == live.engine.num_blocks
        assert httpx.get(f"{live.url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_do_not_wait_for_the_first_byte_leave_nothing_behind(path: str, stream: bool) -> None:
    """They may leave between the start of the engine's request and the first event of its stream."""
    bodies = {
        "/v1/completions": {"prompt": ["a", "b"], "max_tokens": 10_000},
        "/v1/responses": {"input": "hi"},
    }
    with serving(long_engine()) as live:
        for _ in range(40):
            client = live.connect()
            client.sendall(request({**bodies.get(path, chat()), "stream": stream}, path))
            client.close()
        late = live.connect()  # its answer says that the others were read
        late.sendall(request(chat(max_tokens=1)))
        late.recv(10_000)
        wait_until(lambda: not live.engine.running and not live.server.service.open)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_a_whole_answer_is_not_made_for_a_client_that_left(path: str) -> None:
    bodies = {
        "/v1/completions": {"prompt": ["a", "b"], "max_tokens": 10_000},
        "/v1/responses": {"input": "hi"},
    }
    with serving(long_engine()) as live:
        client = live.connect()
        client.sendall(request(bodies.get(path, chat()), path))
        wait_until(lambda: bool(live.engine.running) and live.engine.num_made > 5)
        client.close()
        wait_until(lambda: not live.engine.running)
        assert live.engine.aborted


def test_a_client_that_reads_nothing_is_dropped() -> None:
    engine = ScriptedEngine(lambda *_: Script("x" * 2000, is_endless=True), max_model_len=1 << 20)
    with serving(engine, limits=Limits(slow_client_s=0.3)) as live:
        client = live.connect(rcvbuf=4096)
        client.sendall(request(chat(stream=True, logprobs=True, top_logprobs=20)))
        wait_until(lambda: bool(live.engine.running))
        wait_until(lambda: not live.engine.running)
        assert live.engine.aborted
        # The connection is gone, and not only closed behind what nobody reads.
        wait_until(lambda: not live.server.server_state.connections)
        client.close()


def test_whole_answers_that_nobody_reads_are_dropped() -> None:
    """The answer is done, and fills memory that its client decides about."""
    engine = ScriptedEngine(endless, max_model_len=1 << 20)
    with serving(engine, limits=Limits(slow_client_s=0.3)) as live:
        client = live.connect(rcvbuf=4096)
        body = {"prompt": "x", "max_tokens": 1000, "logprobs": 5, "n": 8}
        client.sendall(request(body, "/v1/completions"))
        wait_until(lambda: bool(live.engine.finished))
        wait_until(lambda: not live.server.server_state.connections)


def test_a_client_may_read_slowly() -> None:
    with serving(ScriptedEngine(endless, max_model_len=1 << 20), limits=Limits(slow_client_s=0.2)) as live:
        client = live.connect(rcvbuf=4096)
        client.sendall(request({"prompt": "x", "max_tokens": 800, "logprobs": 5, "n": 8}, "/v1/completions"))
        assert client.recv(2000)
        for _ in range(6):  # four times as long as one may read nothing
            time.sleep(0.13)
            assert client.recv(50_000)
        assert live.server.server_state.connections


def test_silence_is_filled_with_comments() -> None:
    engine = ScriptedEngine("ab", delay_s=0.2)
    with serving(engine, comment_s=0.05) as live:
        text = httpx.post(f"{live.url}/v1/chat/completions", json=chat(stream=True), timeout=20).text
        assert ": keep-alive\n\n" in text and text.endswith("data: [DONE]\n\n")
        assert text.count('"finish_reason":"stop"') == 1


# --- connections that are no calls --------------------------------------------------------


def test_headers_have_to_arrive_in_time() -> None:
    with serving(ScriptedEngine(), limits=Limits(header_read_s=0.2)) as live:
        silent, slow = live.connect(), live.connect()
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        assert rest(silent) == rest(slow) == b""
        # One that keeps its connection has that time again, from the first byte of its next call.
        good = live.connect()
        good.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert good.recv(10_000).startswith(b"HTTP/1.1 200")
        good.sendall(b"GET /health HTTP/1.1\r\n")
        assert b"HTTP/1.1" not in rest(good)


def test_a_call_may_take_longer_than_its_headers() -> None:
    with serving(ScriptedEngine("ab", delay_s=0.2), limits=Limits(header_read_s=0.2)) as live:
        assert httpx.post(f"{live.url}/v1/chat/completions", json=chat(), timeout=20).status_code == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 70_000, b"431"),
        (b"GET /" + b"x" * 70_000, b"431"),
        (b"\x16\x03\x01\x02\x00 hello\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", b"400"),
        # Whole at once: nothing of it is ever incomplete.
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", b"431"),
        (
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /version HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"400",
        ),
    ],
    ids=["header", "line", "tls", "hosts", "length", "headers", "two-lengths"],
)
def test_what_is_no_http_is_answered_and_closed(sent: bytes, status: bytes) -> None:
    with serving(ScriptedEngine()) as live:
        client = live.connect()
        with contextlib.suppress(ConnectionError):
            client.sendall(sent)
        assert rest(client).startswith(b"HTTP/1.1 " + status)
        assert httpx.get(f"{live.url}/health").status_code == 200


def test_a_body_has_to_arrive_in_time() -> None:
    with serving(ScriptedEngine(), body_s=0.2) as live:
        client = live.connect()
        client.sendall(request(chat())[:-3])
        assert client.recv(10_000).startswith(b"HTTP/1.1 408")


def test_calls_beyond_the_limit_are_told_to_come_again() -> None:
    with serving(long_engine(), limits=Limits(num_connections=2)) as live:
        clients = [live.connect() for _ in range(2)]
        for client in clients:
            client.sendall(request(chat(stream=True)))
            client.recv(10_000)
        answer = httpx.post(f"{live.url}/v1/chat/completions", json=chat())
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
        for client in clients:
            client.close()
        wait_until(lambda: not live.engine.running)


# --- places -------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_an_error_before_anything_loads() -> None:
    with contextlib.closing(running.bind(running.Place(port=0))) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        with pytest.raises(errors.InfiniError, match=rf"cannot listen on 127.0.0.1 port {port}"):
            running.bind(running.Place(port=port))


def test_a_unix_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    place = running.Place(uds=str(path))
    with serving(ScriptedEngine(), place, allowed_hosts=None):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://any/health").json() == {"status": "ok"}
        with pytest.raises(errors.InfiniError, match="cannot listen on the socket"):
            running.bind(place)
    # What a server that was killed left behind is in nobody's way.
    assert path.exists()
    running.bind(place).close()


def test_tls(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    place = running.Place(port=0, ssl_keyfile=str(key), ssl_certfile=str(certificate))
    with serving(ScriptedEngine(), place) as live:
        trusted = ssl.create_default_context(cafile=str(certificate))
        answer = httpx.get(f"https://127.0.0.1:{live.port}/health", verify=trusted)
        assert answer.json() == {"status": "ok"}


def test_files_that_are_no_certificates_are_an_error() -> None:
    place = running.Place(port=0, ssl_keyfile=__file__, ssl_certfile=__file__)
    with contextlib.closing(running.bind(place)) as bound, pytest.raises(errors.InfiniError, match="TLS"):
        running.make(ScriptedEngine(), Settings(), place, bound)


def test_the_loopback_is_known_by_its_addresses() -> None:
    hosts = ["127.0.0.1", "127.1.2.3", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "example.org", ""]
    assert [is_loopback(host) for host in hosts] == [True] * 4 + [False] * 5


# --- the end ------------------------------------------------------------------------------


def test_calls_that_take_too_long_at_the_end_are_told() -> None:
    with serving(long_engine(), drain_s=0.3) as live:
        client = live.connect()
        client.sendall(request(chat(stream=True)))
        client.recv(10_000)
        live.server.should_exit = True
        text = rest(client).decode()
        assert '"code":"aborted"' in text and "data: [DONE]" in text
    assert not live.engine.running


PROGRAM = """
    import sys
    from infini.llm.server import logs, running
    from infini.llm.server.settings import Settings
    from tests.llm.server.scripted import Script, ScriptedEngine

    engine = ScriptedEngine("x" * 40, delay_s=float(sys.argv[1]))
    logs.configure(form="json")
    status = running.serve(engine, Settings(names=("tiny",)), running.Place(port=0))
    print("ended", engine.was_shut_down, len(engine.running))
    sys.exit(status)
"""


@contextlib.contextmanager
def program(delay_s: float) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(delay_s)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said = json.loads(line)
            if said["event"] == "ready":
                yield process, int(said["message"].rpartition(":")[2])
                return
        pytest.fail("the server ended before it was ready")
    finally:
        process.kill()
        process.communicate()


def test_a_first_signal_lets_calls_finish() -> None:
    with program(0.02) as (process, port):
        with contextlib.closing(socket.create_connection(("127.0.0.1", port), 20)) as client:
            client.sendall(request(chat(stream=True)))
            client.recv(10_000)
            process.send_signal(signal.SIGTERM)
            text = rest(client).decode()
        assert '"finish_reason":"stop"' in text and text.rstrip().endswith("0")
        out, _ = process.communicate(timeout=30)
        assert (process.returncode, out.strip()) == (0, "ended True 0")


def test_a_second_signal_kills() -> None:
    with (
        program(5.0) as (process, port),
        contextlib.closing(socket.create_connection(("127.0.0.1", port), 20)) as client,
    ):
        client.sendall(request(chat(stream=True)))
        client.recv(10_000)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any('"draining"' in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
