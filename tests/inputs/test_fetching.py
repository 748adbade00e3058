"""Servers that redirect, drip, never end, lie or pack; names that lead to other addresses; proxies. All on this machine."""

import base64
import gzip
import http.server
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from m0.errors import ImageError, InputError
from m0.inputs.fetching import PIECE
from m0.inputs.images import ImageSettings, prepare_picture
from m0.inputs.policy import SourcePolicy
from tests.inputs.test_policy import png

PICTURE = png()
HERE = SourcePolicy(hosts=["127.0.0.1"])
MOST = 300_000


class Server(http.server.ThreadingHTTPServer):
    """Answers by path, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, host="127.0.0.1", port=0):
        self.asked, self.stop = [], threading.Event()
        super().__init__((host, port), Handler)

    @property
    def url(self):
        return f"http://{self.server_address[0]}:{self.server_port}"

    def paths(self):
        return [path for path, _ in self.asked]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        self.close_connection = True
        name, _, rest = self.path.partition("?")[0].lstrip("/").partition("/")
        answer = getattr(self, "answer_" + name.replace("-", "_").replace(".png", ""), self.answer_else)
        with suppress(OSError):  # the other side hangs up, as it should
            answer(rest)

    def head(self, status=200, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()

    def picture(self):
        self.head(Content_Type="image/png", Content_Length=str(len(PICTURE)))
        self.wfile.write(PICTURE)

    def answer_else(self, _):
        self.send_error(404)

    def answer_loop(self, _):
        self.head(302, Location="/loop", Content_Length="0")

    def answer_picture(self, _):
        self.picture()

    def answer_hop(self, left):
        if left == "0":
            self.picture()
        else:
            self.head(302, Location=f"/hop/{int(left) - 1}", Content_Length="0")

    def answer_to(self, place):
        """/to/STATUS/any/location, with | for a question mark."""
        status, _, place = place.partition("/")
        self.head(int(status), Location=place, Content_Length="0")

    def answer_nowhere(self, _):
        self.head(302, Content_Length="0")

    def answer_page(self, _):
        self.head(Content_Type='Text/HTML; charset="ISO-8859-1"')
        self.wfile.write(b"<p>page</p>")

    def drip(self, byte):
        """Some bytes a second, until the test is over."""
        while not self.server.stop.wait(0.02):
            self.wfile.write(byte)

    def answer_drip_body(self, _):
        self.head(Content_Type="image/png")
        self.drip(b"x")

    def answer_drip_head(self, _):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        self.drip(b"x")

    def answer_drip_chunks(self, _):
        self.head(Transfer_Encoding="chunked")
        self.drip(b"1\r\nx\r\n")

    def answer_late(self, _):
        """Nothing for a while, then all."""
        self.server.stop.wait(5)
        self.picture()

    def endless(self, piece):
        while not self.server.stop.is_set():
            self.wfile.write(piece)

    def answer_endless_body(self, _):
        self.head(Content_Type="image/png")
        self.endless(bytes(2**16))

    def answer_endless_chunks(self, _):
        self.head(Transfer_Encoding="chunked")
        self.endless(b"400\r\n" + bytes(1024) + b"\r\n")

    def answer_endless_trailers(self, _):
        self.head(Transfer_Encoding="chunked")
        self.wfile.write(b"1\r\nx\r\n0\r\n")
        self.endless(b"X-Long: y\r\n" * 1000)

    def answer_endless_interim(self, _):
        self.endless(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    def answer_endless_heads(self, _):
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        self.endless(b"X-Many: y\r\n" * 1000)

    def answer_stated(self, size):
        self.head(Content_Length=size)
        self.wfile.write(bytes(int(size) if int(size) < 10**6 else 10))

    def answer_gzip(self, kind):
        packed = gzip.compress({"bomb": bytes(10 * MOST), "twice": gzip.compress(PICTURE)}.get(kind, PICTURE))
        packed = packed[:-9] if kind == "cut" else packed[:20] + b"\xff" * 40 + packed[60:] if kind == "damaged" else packed
        data = PICTURE if kind == "misnamed" else packed
        self.head(Content_Type="image/png", Content_Encoding="gzip", Content_Length=str(len(data)))
        self.wfile.write(data)

    def answer_says(self, _):
        self.wfile.write(b"SSH-2.0-Something \x1b[31m" + b"y" * 500 + b"\r\n")

    def answer_reason(self, _):
        self.wfile.write(b"HTTP/1.1 500 \x1b[31m" + b"y" * 500 + b"\r\n\r\n")

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def twins():
    """Servers at two addresses of this machine and one port."""
    first = Server("127.0.0.1")
    try:
        second = Server("127.0.0.2", first.server_port)
    except OSError as error:
        first.server_close()
        pytest.skip(f"127.0.0.2 cannot be listened at: {error}")
    with serving(first), serving(second):
        yield first, second


@pytest.fixture
def server():
    with serving(Server()) as running:
        yield running


@pytest.fixture
def other():
    with serving(Server()) as running:
        yield running


@pytest.fixture
def names(monkeypatch):
    """A resolver that knows what a test puts in; and whom it was asked for."""
    known, asked, real = {}, [], socket.getaddrinfo

    def look_up(host, port, *arguments, **keywords):
        asked.append(host)
        addresses = known.get(host)
        if addresses is None:
            if host.replace(".", "").isdigit() or ":" in host:
                return real(host, port, *arguments, **keywords)
            raise socket.gaierror(-2, "Name or service not known")
        now = addresses.pop(0) if isinstance(addresses[0], list) else addresses
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in now]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    known["asked"] = asked
    return known


def refusal_of(policy, url):
    with pytest.raises(ImageError) as caught:
        prepare_picture(url, ImageSettings(policy=policy))
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 400
    return message


# --- what is answered ---------------------------------------------------------------------------------------------------


def test_fetch_gives_bytes_and_their_type(server):
    assert HERE.fetch(f"{server.url}/picture.png?a=b#c", "image/png") == (PICTURE, "image/png")
    path, headers = server.asked[0]
    assert path == "/picture.png?a=b"
    assert headers == {
        "Host": f"127.0.0.1:{server.server_port}",
        "User-Agent": "m0",
        "Accept": "image/png",
        "Connection": "close",
        "Accept-Encoding": "identity",
    }
    assert HERE.fetch(f"{server.url}/page") == (b"<p>page</p>", "text/html; charset=iso-8859-1")
    with pytest.raises(InputError, match="is not an http or https address") as caught:
        HERE.fetch("file:///tmp/a.png")
    assert type(caught.value) is InputError


def test_only_named_hosts_and_ports_are_asked(server):
    port = server.server_port
    for hosts in (["127.0.0.1"], [f"127.0.0.1:{port}"], ["a.org", "127.0.0.1"]):
        assert SourcePolicy(hosts=hosts).fetch(f"{server.url}/picture")[0] == PICTURE
        assert SourcePolicy.server(hosts=hosts).fetch(f"{server.url}/picture")[0] == PICTURE
    count = len(server.asked)
    for hosts in ([], ["a.org"], ["127.0.0.1:9"], ["127.0.0.2"], ["*.org"]):
        said = refusal_of(SourcePolicy(hosts=hosts), f"{server.url}/picture")
        assert said == f"{server.url}/picture is not fetched: the policy does not allow its host."
    assert len(server.asked) == count


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1", "[::ffff:127.0.0.1]", "%31%32%37.0.0.1"]
)
def test_other_ways_to_write_an_address_of_this_machine(server, host):
    """Whatever the system's resolver makes of it, the connection does not go there."""
    url = f"http://{host}:{server.server_port}/picture"
    assert refusal_of(SourcePolicy(private_addresses=False), url) == (
        f"{url} cannot be fetched: its host has no address, or none that is public."
    )
    assert not server.asked


# --- redirects ----------------------------------------------------------------------------------------------------------


def test_redirects_are_counted(server):
    for policy in (HERE, SourcePolicy()):
        assert replace(policy, redirects=3).fetch(f"{server.url}/hop/3")[0] == PICTURE
        said = refusal_of(replace(policy, redirects=2), f"{server.url}/hop/3")
        assert said == f"{server.url}/hop/3 is redirected more than 2 times."
    assert refusal_of(replace(HERE, redirects=0), f"{server.url}/hop/1").endswith("/hop/1 is redirected more than 0 times.")
    assert refusal_of(replace(HERE, redirects=1), f"{server.url}/hop/2").endswith("/hop/2 is redirected more than 1 time.")
    assert replace(HERE, redirects=0).fetch(f"{server.url}/picture")[0] == PICTURE


def test_a_loop_ends(server):
    assert refusal_of(SourcePolicy(), f"{server.url}/loop") == f"{server.url}/loop is redirected more than 10 times."
    assert len(server.asked) == 11


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_every_redirect_is_followed(server, status):
    assert HERE.fetch(f"{server.url}/to/{status}//picture")[0] == PICTURE
    assert HERE.fetch(f"{server.url}/to/{status}/{server.url}/picture")[0] == PICTURE


def test_what_is_no_redirect(server):
    assert refusal_of(HERE, f"{server.url}/nowhere") == f"{server.url}/nowhere answered 302 Found."
    assert refusal_of(HERE, f"{server.url}/to/304//picture") == f"{server.url}/to/304//picture answered 304 Not Modified."


@pytest.mark.parametrize(
    "place",
    ["file:///tmp/a.png", "FILE:/tmp/a.png", "ftp://127.0.0.1/a.png", "data:image/png;base64,AAAA", "gopher://127.0.0.1/"],
)
def test_redirects_lead_to_the_web_alone(server, place):
    for policy in (HERE, SourcePolicy()):
        said = refusal_of(policy, f"{server.url}/to/302/{place}")
        assert said == f"{server.url}/to/302/{place} is redirected to an address that is neither http nor https."


def test_redirects_to_what_is_none(server):
    for place in ("http://[::bad/", "http://a b/", "http://127.0.0.1:99999/"):
        url = f"{server.url}/to/302/{place}"
        assert refusal_of(HERE, url) == f"{url} is redirected to what is not an address."


def test_each_redirect_is_checked_as_the_first_address_was(server, other, names):
    """By host, by port and by address; and where it fails, nothing is asked, and all failures sound alike."""
    names["localhost"], names["pictures.test"], names["both.test"] = ["127.0.0.1"], ["127.0.0.1"], ["10.0.0.1", "127.0.0.1"]
    named = SourcePolicy(hosts=[f"127.0.0.1:{server.server_port}", "pictures.test", "both.test", "absent.test"])
    said = set()
    for place in (
        f"{other.url}/picture",  # another port
        f"http://localhost:{server.server_port}/picture",  # another name
        f"http://pictures.test:{other.server_port}/picture",  # a name that is allowed, whose address is not
        f"http://both.test:{other.server_port}/picture",
        f"http://absent.test:{other.server_port}/picture",  # a name that is allowed and unknown
        f"http://other.test:{other.server_port}/picture",
        f"//localhost:{server.server_port}/picture",
    ):
        url = f"{server.url}/to/302/{place}"
        said.add(refusal_of(named, url).replace(url, "X"))
    assert said == {"X is redirected to a host that the policy does not allow."}
    assert not other.asked
    assert all(path.startswith("/to/") for path in server.paths())
    by_name = replace(named, private_addresses=True)
    for place in (f"{other.url}/picture", f"http://localhost:{server.server_port}/picture", "http://absent.test/picture"):
        url = f"{server.url}/to/302/{place}"
        told = "did not answer" if "absent" in place else "is redirected to a host that the policy does not allow."
        assert told in refusal_of(by_name, url)
    assert not other.asked
    assert SourcePolicy(hosts=["127.0.0.1"]).fetch(f"{server.url}/to/302/{other.url}/picture")[0] == PICTURE


# --- names and addresses ------------------------------------------------------------------------------------------------


def test_a_name_of_the_inside_sounds_like_an_unknown_one(server, names):
    names["inside.test"] = ["127.0.0.1"]
    for policy in (SourcePolicy(hosts=["*.test"]), SourcePolicy.server(urls=True), SourcePolicy(private_addresses=False)):
        said = [refusal_of(policy, f"http://{name}.test:{server.server_port}/picture") for name in ("inside", "absent")]
        assert said[0].replace("inside", "absent") == said[1]
        assert said[1].endswith("cannot be fetched: its host has no address, or none that is public.")
    assert not server.asked
    for policy in (
        SourcePolicy(),
        SourcePolicy(hosts=["*.test"], private_addresses=True),
        SourcePolicy(hosts=["*.test"], private_addresses=["inside.test"]),
        SourcePolicy(private_addresses=["127.0.0.0/8"]),
    ):
        assert policy.fetch(f"http://inside.test:{server.server_port}/picture")[0] == PICTURE
    assert "Name or service not known" in refusal_of(SourcePolicy(), "http://absent.test/a.png")


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(names):
    """A name that says another address when it is asked again (DNS rebinding) is not asked again."""
    with twins() as (first, second):
        names["turns.test"] = [["127.0.0.1"], ["127.0.0.2"]]
        policy = SourcePolicy(hosts=["turns.test"], private_addresses=["127.0.0.1"])
        assert policy.fetch(f"http://turns.test:{first.server_port}/picture")[0] == PICTURE
        assert (first.paths(), second.paths()) == (["/picture"], [])
        assert names["asked"] == ["turns.test", "127.0.0.1"][: len(names["asked"])]
        assert first.asked[0][1]["Host"] == f"turns.test:{first.server_port}"
        # The second time it does say the other one, which is refused.
        said = refusal_of(policy, f"http://turns.test:{first.server_port}/picture")
        assert said.endswith("its host has no address, or none that is public.")
        assert not second.asked


def test_of_several_addresses_only_those_allowed_are_connected_to(names):
    with twins() as (first, second):
        names["some.test"] = ["127.0.0.2", "127.0.0.1"]
        policy = SourcePolicy(private_addresses=["127.0.0.1"])
        assert policy.fetch(f"http://some.test:{first.server_port}/picture")[0] == PICTURE
        assert (len(first.asked), len(second.asked)) == (1, 0)


def test_where_one_address_does_not_answer_the_next_is_tried(server, names):
    names["some.test"] = ["127.0.0.3", "127.0.0.1"]
    assert SourcePolicy().fetch(f"http://some.test:{server.server_port}/picture")[0] == PICTURE
    names["some.test"] = ["127.0.0.3"]
    assert "refused" in refusal_of(SourcePolicy(), f"http://some.test:{server.server_port}/picture")


# --- time and size ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["drip-body", "drip-head", "drip-chunks", "late"])
@pytest.mark.parametrize("way", ["", "to/302//"])
def test_a_slow_answer_ends_at_the_total_time(server, path, way):
    """Though each byte comes soon, and though the whole would come in the end."""
    for policy in (SourcePolicy(seconds=0.25), replace(HERE, seconds=0.25)):
        url = f"{server.url}/{way}{path}"
        assert refusal_of(policy, url) == f"{url} took longer than 0.25 seconds."


def test_a_slow_resolver_ends_at_the_total_time(monkeypatch):
    answer = threading.Event()

    def look_up(*_, **__):
        answer.wait(60)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for policy in (SourcePolicy(seconds=0.2), SourcePolicy(seconds=0.2, private_addresses=False)):
        assert refusal_of(policy, "http://slow.test/a.png") == "http://slow.test/a.png took longer than 0.2 seconds."
    answer.set()


def test_a_port_that_does_not_talk_tls_ends_at_the_total_time(server):
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and says nothing
        url = f"https://127.0.0.1:{mute.getsockname()[1]}/a.png"
        assert refusal_of(SourcePolicy(seconds=0.3), url) == f"{url} took longer than 0.3 seconds."


@pytest.mark.parametrize("path", ["body", "chunks", "trailers", "interim"])
def test_an_endless_answer_ends_at_the_largest_size(server, path):
    url = f"{server.url}/endless-{path}"
    assert refusal_of(SourcePolicy(max_bytes=MOST), url) == f"{url} is larger than {MOST} bytes."
    assert refusal_of(replace(HERE, max_bytes=2**20), url) == f"{url} is larger than 1 MiB."


def test_too_many_lines_in_the_head(server):
    assert refusal_of(SourcePolicy(), f"{server.url}/endless-heads") == (
        f"{server.url}/endless-heads did not answer as a web server should: got more than 100 headers."
    )


def test_the_largest_size_itself_is_read(server):
    for size in (MOST, PIECE, PIECE + 1, 0):
        policy = SourcePolicy(max_bytes=max(size, 1))
        assert policy.fetch(f"{server.url}/stated/{size}")[0] == bytes(size)
    for size in (MOST + 1, 10**17):
        url = f"{server.url}/stated/{size}"
        assert refusal_of(SourcePolicy(max_bytes=MOST), url) == f"{url} is larger than {MOST} bytes."
    assert refusal_of(SourcePolicy(), f"{server.url}/stated/20000000").endswith("cut short after 10 of 20000000 bytes.")


def test_packed_answers(server):
    policy = SourcePolicy(max_bytes=MOST)
    for kind in ("picture", "misnamed"):
        for size in (MOST, 2**80):
            assert SourcePolicy(max_bytes=size).fetch(f"{server.url}/gzip/{kind}") == (PICTURE, "image/png")
    assert policy.fetch(f"{server.url}/gzip/twice")[0][:2] == b"\x1f\x8b"
    assert refusal_of(policy, f"{server.url}/gzip/bomb") == f"{server.url}/gzip/bomb is larger than {MOST} bytes."
    assert refusal_of(policy, f"{server.url}/gzip/cut") == f"{server.url}/gzip/cut: the answer was cut short."
    assert refusal_of(policy, f"{server.url}/gzip/damaged") == f"{server.url}/gzip/damaged did not answer: its gzip is damaged."


@pytest.mark.parametrize("path", ["says", "reason"])
def test_what_a_server_says_is_shown_short_and_plain(server, path):
    said = refusal_of(SourcePolicy(), f"{server.url}/{path}")
    assert said.endswith("yyy....")
    assert "[31m" in said  # harmless without the escape before it


# --- credentials --------------------------------------------------------------------------------------------------------


def test_credentials_go_to_their_host_alone_and_into_no_message(server, other):
    own = server.url.replace("//", "//me:hunter%3A2@")
    expected = "Basic " + base64.b64encode(b"me:hunter:2").decode()
    assert SourcePolicy().fetch(f"{own}/to/302//hop/1")[0] == PICTURE
    assert [headers.get("Authorization") for _, headers in server.asked] == [expected] * 3
    assert SourcePolicy().fetch(f"{own}/to/302/{other.url}/picture")[0] == PICTURE
    assert SourcePolicy().fetch(f"{server.url}/to/302/{other.url.replace('//', '//a:b@')}/picture")[0] == PICTURE
    assert [headers.get("Authorization") for _, headers in other.asked] == [None, None]
    for path in ("gone", "page", "drip-body", "endless-body", "says", "gzip/cut", "to/302/file:///x", "stated/2000000"):
        said = refusal_of(SourcePolicy(seconds=0.5, max_bytes=MOST), f"{own}/{path}")
        assert said.startswith(f"{server.url}/{path}")
        assert "hunter" not in said
    assert "hunter" not in refusal_of(SourcePolicy(), "http://me:hunter2@127.0.0.1:9/a.png")
    assert refusal_of(SourcePolicy(), f"{own}/gzip/twice") == f"{server.url}/gzip/twice is not a picture that Pillow can open."


# --- proxies ------------------------------------------------------------------------------------------------------------


class ProxyHandler(Handler):
    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        self.picture()

    def do_CONNECT(self):
        self.server.asked.append((self.path, dict(self.headers)))
        if self.server.tunnel is None:
            self.send_error(403)
            return
        self.send_response(200)
        self.end_headers()
        with socket.create_connection(self.server.tunnel) as far:
            back = threading.Thread(target=self.copy, args=(far, self.connection))
            back.start()
            self.copy(self.connection, far)
            back.join()
        self.close_connection = True

    def copy(self, source, sink):
        with suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(monkeypatch, no_proxy):
    running = Server()
    running.RequestHandlerClass, running.tunnel = ProxyHandler, None
    with serving(running):
        monkeypatch.setenv("http_proxy", running.url.replace("//", "//me:pass@"))
        monkeypatch.setenv("https_proxy", running.url.removeprefix("http://"))
        yield running


def test_the_environments_proxy_is_used_where_every_address_is_allowed(server, proxy, monkeypatch):
    for policy in (SourcePolicy(), SourcePolicy(hosts=["pictures.test"], private_addresses=True)):
        assert policy.fetch("http://pictures.test/a.png")[0] == PICTURE
    path, headers = proxy.asked[-1]
    assert path == "http://pictures.test/a.png"
    assert headers["Host"] == "pictures.test"
    assert headers["Proxy-Authorization"] == "Basic " + base64.b64encode(b"me:pass").decode()
    assert refusal_of(SourcePolicy(hosts=["a.test"], private_addresses=True), "http://b.test/").endswith(
        "does not allow its host."
    )
    said = refusal_of(SourcePolicy(), "https://pictures.test/a.png")
    assert said == "https://pictures.test/a.png did not answer: Tunnel connection failed: 403 Forbidden."
    assert proxy.asked[-1][0] == "pictures.test:443"
    count = len(proxy.asked)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert SourcePolicy().fetch(f"{server.url}/picture")[0] == PICTURE
    assert len(proxy.asked) == count


def test_the_environments_proxy_is_not_used_where_addresses_are_checked(server, proxy, names):
    for policy in (HERE, SourcePolicy(private_addresses=["127.0.0.1"])):
        assert policy.fetch(f"{server.url}/picture")[0] == PICTURE
    for policy in (SourcePolicy.server(urls=True), SourcePolicy(hosts=["pictures.test"])):
        assert "none that is public" in refusal_of(policy, "http://pictures.test/a.png")
    assert not proxy.asked


@pytest.mark.parametrize("named", ["socks5://127.0.0.1:1", "http://me:hunter2@:bad", "http://[::bad", "https://127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used_is_said(proxy, monkeypatch, named):
    monkeypatch.setenv("http_proxy", named)
    said = refusal_of(SourcePolicy(), "http://pictures.test/a.png")
    assert said.startswith("http://pictures.test/a.png did not answer: the proxy that the environment names ")
    assert "hunter2" not in said


# --- TLS ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def secure(tmp_path, monkeypatch):
    """A server with a certificate for pictures.test, which this process trusts; and what names it was asked for."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes a certificate, is not installed")
    pem = tmp_path / "both.pem"
    made = subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pictures.test -addext subjectAltName=DNS:pictures.test".split()
        + ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "certificate.pem")],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("this openssl makes no certificate")
    pem.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "certificate.pem").read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    running = Server()
    running.names = []
    context.sni_callback = lambda _socket, name, _context: running.names.append(name)
    running.socket = context.wrap_socket(running.socket, server_side=True)
    running.handle_error = lambda *_: None
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    with serving(running):
        yield running


def test_tls_names_the_host_though_the_address_is_connected_to(secure, names, proxy):
    names["pictures.test"], names["other.test"] = ["127.0.0.1"], ["127.0.0.1"]
    policy = SourcePolicy(hosts=["*.test"], private_addresses=["127.0.0.1"])
    url = f"https://pictures.test:{secure.server_port}"
    assert policy.fetch(f"{url}/hop/1")[0] == PICTURE
    assert secure.names == ["pictures.test"] * 2
    assert secure.asked[0][1]["Host"] == f"pictures.test:{secure.server_port}"
    assert "certificate verify failed" in refusal_of(policy, url.replace("pictures", "other") + "/picture")
    slow = replace(policy, seconds=0.5)
    assert refusal_of(slow, f"{url}/drip-body") == f"{url}/drip-body took longer than 0.5 seconds."
    assert not proxy.asked
    # Through a tunnel, which anybody may open where every address is allowed.
    proxy.tunnel = secure.server_address
    assert SourcePolicy().fetch(f"{url}/picture")[0] == PICTURE
    assert proxy.asked[-1][0] == f"pictures.test:{secure.server_port}"
    assert secure.names[-1] == "pictures.test"
