"""The socket and the thread below a service."""

import socket

import httpx
import pytest

from learnmech.collector.service.server import Service, bind
from learnmech.collector.service.settings import Settings, SettingsError


def test_answers_are_not_held_back():
    """asyncio switches Nagle's algorithm off only on sockets that name their protocol; else each answer waits 40 ms."""
    with bind(Settings(port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_taken_port_is_told_before_anything_starts(store):
    with bind(Settings(port=0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port}"):
            Service(Settings(port=port), store)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_a_sentence(host, token):
    with pytest.raises(SettingsError, match=host):
        bind(Settings(host=host, port=0, token=token))


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_a_sentence(port):
    with pytest.raises(SettingsError, match=str(port)):
        Settings(port=port)


def test_the_wildcard_is_shown_as_an_address_that_can_be_opened(store, token):
    with Service(Settings(host="0.0.0.0", port=0, token=token), store) as service:
        assert service.url == f"http://127.0.0.1:{service.port}"
        assert httpx.get(f"{service.url}/healthz", trust_env=False).status_code == 200


def test_two_services_in_one_process_count_apart(store, serve):
    first, second = serve(store), serve(store)
    first.http.get("/v1/laws")
    line = 'learnmech_http_requests_total{method="GET",route="/v1/laws",status="200"} 1.0'
    assert line in first.http.get("/metrics").text
    assert line not in second.http.get("/metrics").text


def test_after_a_stop_the_port_is_free_and_can_be_taken_again(store):
    with Service(Settings(port=0), store) as service:
        httpx.get(f"{service.url}/healthz", trust_env=False)
        port = service.port
    with Service(Settings(port=port), store) as again:
        assert httpx.get(f"{again.url}/healthz", trust_env=False).status_code == 200


def test_an_ipv6_address_is_written_in_brackets():
    assert Settings(host="::1").address == "[::1]"


def test_a_service_that_was_never_started_lets_go_of_its_port(store):
    service = Service(Settings(port=0), store)
    service.stop()
    bind(Settings(port=service.port)).close()
