"""Which hosts, addresses and files a policy allows, in words that give nothing away; and that a policy changes no score."""

import base64
import io
import ipaddress
import os
import pickle
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import m0
from m0.engine.prefixes import fingerprint_of
from m0.errors import ImageError, InputError
from m0.inputs import policy as policy_module
from m0.inputs.hosts import Target, host_pattern, is_public, normal_host, shown
from m0.inputs.images import ImageSettings, prepare_picture
from m0.inputs.policy import SourcePolicy
from m0.reranker import Reranker
from tests.conftest import noise

NO_PATH = "is not read: the policy allows no path there."


@pytest.fixture
def folders(tmp_path):
    """A root with a picture, one in a folder, and links; and a picture outside."""
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (tmp_path / "root-beside").mkdir()
    for place in ("root/a.png", "root/inner/b.png", "outside.png", "root-beside/c.png"):
        noise(60, 60, seed=1).save(tmp_path / place)
    (root / "link.png").symlink_to(root / "a.png")
    (root / "out.png").symlink_to(tmp_path / "outside.png")
    (root / "out-nowhere.png").symlink_to(tmp_path / "absent.png")
    (root / "folder-out").symlink_to(tmp_path)
    (root / "circle.png").symlink_to(root / "circle.png")
    return root


def refusal_of(policy, source):
    with pytest.raises(ImageError) as caught:
        prepare_picture(source, ImageSettings(policy=policy))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- fields -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"urls": 1},
        {"paths": "yes"},
        {"data": None},
        {"redirects": -1},
        {"redirects": True},
        {"seconds": 0},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"seconds": 1e300},
        {"seconds": "5"},
        {"max_bytes": 0},
        {"max_bytes": 1e6},
        {"hosts": "example.org"},
        {"hosts": 3},
        {"hosts": [b"example.org"]},
        {"hosts": ["http://example.org"]},
        {"hosts": ["example.org/x"]},
        {"hosts": ["a@example.org"]},
        {"hosts": ["*"]},
        {"hosts": ["*."]},
        {"hosts": ["a.*.org"]},
        {"hosts": ["*.0.0.1"]},
        {"hosts": ["example.org:0"]},
        {"hosts": ["example.org:70000"]},
        {"hosts": [""]},
        {"hosts": ["10.0.0.0/8"]},
        {"hosts": ["[example.org]"]},
        {"private_addresses": "10.0.0.0/8"},
        {"private_addresses": ["10.0.0.1/8"]},
        {"private_addresses": ["10.0.0.0/99"]},
        {"root": "no/such/folder"},
        {"root": 3},
        {"root": __file__},
    ],
    ids=repr,
)
def test_fields_that_cannot_be_used_get_one_sentence(fields):
    with pytest.raises(InputError) as caught:
        SourcePolicy(**fields)
    assert str(caught.value).startswith(next(iter(fields))) or fields == {"root": 3}
    assert str(caught.value).endswith(".")


def test_settings_take_only_a_policy():
    with pytest.raises(ImageError, match="policy is str, but must be a SourcePolicy"):
        ImageSettings(policy="none")


def test_a_policy_is_a_value(tmp_path):
    policy = SourcePolicy(hosts=["a.org", "b.org"], root=tmp_path)
    assert policy == SourcePolicy(hosts=("a.org", "b.org"), root=str(tmp_path)) != SourcePolicy()
    assert hash(policy) == hash(pickle.loads(pickle.dumps(policy)))
    assert m0.SourcePolicy is SourcePolicy
    assert replace(policy, hosts=None).hosts is None


def test_the_servers_default_reads_data_alone():
    server = SourcePolicy.server()
    assert (server.urls, server.paths, server.data, server.checks_addresses) == (False, False, True, True)
    data = base64.b64encode(png()).decode()
    for given in (f"data:image/png;base64,{data}", data, png()):
        assert prepare_picture(given, ImageSettings(policy=server)).grid == (4, 4)
    assert (
        refusal_of(server, "http://127.0.0.1:9/a.png")
        == "http://127.0.0.1:9/a.png is not fetched: the policy allows no addresses."
    )
    assert refusal_of(server, "a.png") == "a.png is not read: the policy allows no paths."


def test_what_is_named_is_switched_on(tmp_path):
    assert SourcePolicy.server(hosts=["a.org"]).urls
    assert not SourcePolicy.server(hosts=["a.org"]).paths
    assert SourcePolicy.server(root=tmp_path).paths
    assert not SourcePolicy.server(root=tmp_path).urls
    assert SourcePolicy.server(urls=True).private_addresses is False
    assert SourcePolicy.server(hosts=["127.0.0.1"]).allows_address("127.0.0.1", 80, "127.0.0.1")
    assert SourcePolicy.server(seconds=3).seconds == 3


def test_data_may_be_refused():
    policy = SourcePolicy(data=False)
    data = base64.b64encode(png()).decode()
    assert refusal_of(policy, f"data:image/png;base64,{data}") == (
        "the data URI data:image/png;base64,iVBORw0K... is not read: the policy allows no data."
    )
    assert refusal_of(policy, data).endswith("is not read: the policy allows no data.")
    assert refusal_of(policy, png()).endswith("is not read: the policy allows no data.")
    image = noise(60, 60, seed=1)
    assert prepare_picture(image, ImageSettings(policy=policy)).grid == (4, 4)
    assert prepare_picture(np.asarray(image), ImageSettings(policy=policy)).grid == (4, 4)


def png():
    file = io.BytesIO()
    noise(60, 60, seed=1).save(file, "PNG")
    return file.getvalue()


# --- a policy is no part of a score -------------------------------------------------------------------------------------


def test_a_policy_changes_neither_equality_nor_hash_nor_repr():
    with_policy = ImageSettings(policy=SourcePolicy.server())
    assert with_policy == ImageSettings()
    assert hash(with_policy) == hash(ImageSettings())
    assert repr(with_policy) == repr(ImageSettings())
    assert replace(with_policy, max_pixels=10_000).policy == SourcePolicy.server()
    assert pickle.loads(pickle.dumps(with_policy)).policy == SourcePolicy.server()


def test_a_policy_changes_no_score_no_fingerprint_and_no_saved_file(tiny_directory, tmp_path):
    reranker = Reranker.from_pretrained(tiny_directory, dtype="float32")
    documents = [{"image": noise(60, 60, seed=1)}, {"image": png()}, "words"]
    before, fingerprint = [result.logit for result in reranker.rank("q", documents)], fingerprint_of(reranker)
    reranker.save_pretrained(tmp_path / "before")
    reranker.image_settings = replace(reranker.image_settings, policy=SourcePolicy.server())
    assert reranker.image_settings.policy == SourcePolicy.server()
    assert [result.logit for result in reranker.rank("q", documents)] == before
    assert fingerprint_of(reranker) == fingerprint
    reranker.save_pretrained(tmp_path / "after")
    for path in (tmp_path / "before").iterdir():
        assert path.read_bytes() == (tmp_path / "after" / path.name).read_bytes()


def test_a_ranking_keeps_to_the_policy(tiny_directory, folders):
    reranker = Reranker.from_pretrained(tiny_directory, dtype="float32")
    reranker.image_settings = replace(reranker.image_settings, policy=SourcePolicy(root=folders))
    documents = [{"image": folders / "a.png"}, {"image": folders.parent / "outside.png"}]
    ranking = reranker.rank("q", documents, on_error="skip")
    assert [result.index for result in ranking] == [0]
    assert [failed.error for failed in ranking.failed] == [f"{folders.parent / 'outside.png'} {NO_PATH}"]


def test_policies_need_no_pytorch():
    code = "import sys, m0; m0.SourcePolicy(); print('torch' in sys.modules, 'PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


# --- hosts and addresses ------------------------------------------------------------------------------------------------

INSIDE = """0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254 168.63.129.16 169.254.169.254
172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1
224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 :: ::1 ::2 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:0:127.0.0.1
64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::8.8.8.8 100::1 2001::1 2001:0:4136:e378::1 2001:db8::1
2002:7f00:1::1 2002:808:808::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1""".split()
OUTSIDE = """1.1.1.1 8.8.8.8 100.63.255.255 100.128.0.1 126.255.255.255 128.0.0.1 172.15.255.255 172.32.0.1 192.0.1.1 193.0.0.1
223.255.255.255 168.63.129.15 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2001:4860:4860::8888 2606:4700::1111 2a00::1""".split()


@pytest.mark.parametrize("text", INSIDE)
def test_addresses_that_are_not_of_the_internet(text):
    assert not is_public(ipaddress.ip_address(text))
    for policy in (SourcePolicy(hosts=["a.org"]), SourcePolicy.server(urls=True), SourcePolicy(private_addresses=False)):
        assert not policy.allows_address("a.org", 80, text)
    assert SourcePolicy().allows_address("a.org", 80, text)
    assert SourcePolicy(hosts=["a.org"], private_addresses=True).allows_address("a.org", 80, text)


@pytest.mark.parametrize("text", OUTSIDE)
def test_addresses_of_the_internet(text):
    assert is_public(ipaddress.ip_address(text))
    assert SourcePolicy.server(urls=True).allows_address("a.org", 80, text)


def test_what_is_no_address_is_not_connected_to():
    assert not SourcePolicy(private_addresses=False).allows_address("a.org", 80, "/run/socket")


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("example.org", ["example.org:80", "example.org:8080"], ["a.example.org:80", "example.org.evil:80", "xexample.org:80"]),
        ("Example.ORG.", ["example.org:443"], ["example.com:443"]),
        (
            "*.example.org",
            ["a.example.org:80", "b.a.example.org:1"],
            ["example.org:80", "aexample.org:80", "a.example.org.x:80"],
        ),
        ("example.org:8080", ["example.org:8080"], ["example.org:80"]),
        ("*.example.org:81", ["a.example.org:81"], ["a.example.org:80"]),
        ("münchen.de", ["xn--mnchen-3ya.de:80"], ["munchen.de:80"]),
        ("127.0.0.1", ["127.0.0.1:80"], ["127.0.0.2:80"]),
        ("[::1]:8080", ["::1:8080"], ["::1:80"]),
        ("::1", ["::1:80"], ["::2:80"]),
        ("[0:0::1]", ["::1:80"], ["::2:80"]),
    ],
)
def test_what_an_entry_names(pattern, yes, no):
    for place in yes + no:
        host, _, port = place.rpartition(":")
        assert host_pattern(pattern).names(host, int(port)) is (place in yes), place
        assert SourcePolicy(hosts=[pattern]).allows_host(host, int(port)) is (place in yes)


def test_only_what_is_written_out_may_be_private():
    named = SourcePolicy(hosts=["127.0.0.1:8080", "localhost", "pictures.intranet"])
    assert named.allows_address("127.0.0.1", 8080, "127.0.0.1")
    assert not named.allows_address("127.0.0.1", 8081, "127.0.0.1")  # another port is not named
    assert not named.allows_address("pictures.intranet", 8080, "127.0.0.1")  # whose name anybody may point there
    assert named.allows_address("localhost", 80, "127.0.0.1")
    assert named.allows_address("localhost", 80, "::1")
    assert not named.allows_address("localhost", 80, "10.0.0.1")
    assert named.allows_address("127.0.0.1", 8080, "::ffff:127.0.0.1")
    never = replace(named, private_addresses=False)
    assert not never.allows_address("127.0.0.1", 8080, "127.0.0.1")


def test_a_list_says_which_may_be_private():
    some = SourcePolicy(private_addresses=["10.1.0.0/16", "pictures.intranet", "fd00::/8", "192.168.0.7", "*.inner:81"])
    assert some.checks_addresses
    assert some.allows_host("anything.org", 80)
    for host, port, address, allowed in (
        ("a.org", 80, "10.1.2.3", True),
        ("a.org", 80, "::ffff:10.1.2.3", True),
        ("a.org", 80, "10.2.0.1", False),
        ("pictures.intranet", 80, "10.2.0.1", True),
        ("a.org", 80, "fd12::1", True),
        ("a.org", 80, "192.168.0.7", True),
        ("a.org", 80, "192.168.0.8", False),
        ("x.inner", 81, "127.0.0.1", True),
        ("x.inner", 80, "127.0.0.1", False),
    ):
        assert some.allows_address(host, port, address) is allowed, (host, address)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("EXAMPLE.org.", "example.org"),
        ("%65xample.org", "example.org"),
        ("１２７。0.0.1", "127.0.0.1"),
        ("Ⓔxample.org", "example.org"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("a_b.example", "a_b.example"),
    ],
)
def test_hosts_in_one_form(text, host):
    assert normal_host(text) == host


@pytest.mark.parametrize(
    "text", ["", ".", "a..b", "a b", "a/b", "a%2fb", "a%00b", "℀.org", "a\\b", "x" * 64, ":", "1:2", "a%40b"]
)
def test_hosts_that_cannot_be(text):
    with pytest.raises(ValueError, match="host"):
        normal_host(text)


def test_addresses_taken_apart():
    target = Target.of("http://me:p%40ss@Example.org:8080/a b?c=d#e")
    assert target == Target("http", "example.org", 8080, "/a%20b?c=d", "me:p@ss")
    assert (target.netloc, target.url) == ("example.org:8080", "http://example.org:8080/a%20b?c=d")
    assert Target.of("https://[::1]").netloc == "[::1]"
    assert Target.of("http://allowed.org\\@other.org/").host == "other.org"
    assert Target.of("http://h?x") == Target("http", "h", 80, "/?x")


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@example.org/a.png",
        "HTTPS://me:hunter2@example.org/a.png",
        "http://hunter2@example.org/a.png",
        "http://me:hunter2@x:hunter2@example.org/a.png",
        "http://me:hunter2/x@example.org/a.png",
        "http://me:hunter2?x@example.org/a.png",
        "http:///me:hunter2@example.org/a.png",
    ],
)
def test_messages_do_not_repeat_credentials(url):
    assert shown(url) in ("http://example.org/a.png", "HTTPS://example.org/a.png", "http:///example.org/a.png")
    for policy in (SourcePolicy.server(), SourcePolicy.server(hosts=["other.org"])):
        assert "hunter2" not in refusal_of(policy, url)


def test_addresses_without_credentials_stay_as_they_are():
    for url in ("http://a.org/x@2.png", "http://a.org:80/me:you@b", "http://[::1]/a@b", "http://a.org"):
        assert shown(url) == url
    assert shown("http://a.org/" + "x" * 300) == "http://a.org/" + "x" * 47 + "..."


# --- files --------------------------------------------------------------------------------------------------------------


def test_files_below_the_root(folders, monkeypatch):
    policy = SourcePolicy(root=folders)
    expected = prepare_picture(folders / "a.png").pixels
    monkeypatch.chdir(folders)
    for given in (
        folders / "a.png",
        str(folders / "a.png"),
        str(folders / "a.png").encode(),
        "a.png",
        "./inner/../a.png",
        folders / "inner" / "b.png",
        "link.png",
    ):
        if isinstance(given, bytes):  # which are a picture's, not a path's
            assert policy.open_path(given).read() == (folders / "a.png").read_bytes()
            continue
        assert np.array_equal(prepare_picture(given, ImageSettings(policy=policy)).pixels, expected)
        assert policy.check_path(given).is_relative_to(folders.resolve())
    assert policy.check_path("link.png") == folders.resolve() / "a.png"
    assert policy.check_path("not-there.png") == folders.resolve() / "not-there.png"
    assert refusal_of(policy, "not-there.png") == "not-there.png does not exist."
    assert refusal_of(policy, "inner") == "inner is a directory, not a picture."
    assert refusal_of(policy, ".") == ". is a directory, not a picture."
    assert refusal_of(policy, "a.png/b") == "a.png/b cannot be read: Not a directory."


def test_a_root_may_be_named_by_a_link_or_by_home(folders, monkeypatch, tmp_path):
    (tmp_path / "alias").symlink_to(folders)
    assert SourcePolicy(root=tmp_path / "alias").open_path(tmp_path / "alias" / "a.png").read()
    assert SourcePolicy(root=tmp_path / "alias").open_path(folders / "a.png").read()
    monkeypatch.setenv("HOME", str(tmp_path))
    policy = SourcePolicy(root="~/root")
    assert policy.root == folders
    assert prepare_picture("~/root/a.png", ImageSettings(policy=policy)).grid == (4, 4)
    assert refusal_of(policy, "~/outside.png") == f"~/outside.png {NO_PATH}"


@pytest.mark.parametrize(
    "given",
    [
        "../outside.png",
        "../absent.png",
        "inner/../../outside.png",
        "no-such-folder/../../outside.png",
        "../root-beside/c.png",
        "out.png",
        "out-nowhere.png",
        "folder-out/outside.png",
        "folder-out/absent.png",
        "folder-out/root/../outside.png",
        "folder-out",
        "~/x.png",
        "~nobody-of-this-name/x.png",
        "/",
        "/proc/self/status",
        "/dev/null",
    ],
)
def test_nothing_leads_out_of_the_root(folders, monkeypatch, given):
    policy = SourcePolicy(root=folders)
    monkeypatch.chdir(folders)
    for source in (given, Path(given), Path(folders, given)):
        if source == Path(folders, given) and given.startswith("~"):  # a name like any other there
            continue
        assert refusal_of(policy, source) == f"{source} {NO_PATH}"
        for call in (policy.check_path, policy.open_path):
            with pytest.raises(InputError, match="the policy allows no path there"):
                call(source)


def test_messages_do_not_tell_what_is_there(folders, tmp_path):
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "locked").mkdir(mode=0)
    os.mkfifo(tmp_path / "pipe")
    for policy in (SourcePolicy(root=folders), SourcePolicy(paths=False)):
        said = {
            refusal_of(policy, given).replace(str(given), "X")
            for name in ("outside.png", "absent.png", "a-folder", "locked/x", "pipe", "outside.png/x", "absent/x", "x" * 300)
            for given in (tmp_path / name,)
            if len(str(given)) <= 200
        }
        assert len(said) == 1
        long = [refusal_of(policy, tmp_path / name / ("x" * 240)) for name in ("a-folder", "absent")]
        assert long[0] == long[1]


def test_where_paths_are_refused_the_file_system_is_not_asked(monkeypatch, tmp_path):
    asked = []
    for name in ("exists", "is_file", "is_dir", "open", "expanduser"):
        monkeypatch.setattr(Path, name, lambda self, *_, **__: asked.append(self))
    monkeypatch.setattr(os.path, "realpath", lambda path, **_: asked.append(path))
    for given in ("a.png", "~/a.png", "~nobody-of-this-name/x", "/x/a.png", "x" * 80):
        with pytest.raises(ImageError):
            prepare_picture(given, ImageSettings(policy=SourcePolicy(paths=False)))
    assert not asked


def test_base64_is_told_from_paths_without_looking(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = base64.b64encode(png()).decode()
    for policy in (SourcePolicy(paths=False), SourcePolicy(root=folders)):
        assert prepare_picture(data, ImageSettings(policy=policy)).grid == (4, 4)
        name = "a" * 80
        before = refusal_of(policy, name)
        Path(name).write_bytes(png())
        assert refusal_of(policy, name) == before
        Path(name).unlink()


def test_devices_and_pipes_below_a_root_are_refused(folders):
    os.mkfifo(folders / "pipe")
    (folders / "null").symlink_to("/dev/null")
    policy = SourcePolicy(root=folders)
    with socket.socket(socket.AF_UNIX) as server:
        place = os.path.relpath(folders / "socket")  # such names must be short
        server.bind(place)
        assert refusal_of(policy, folders / "socket") == f"{folders / 'socket'} is not a file, but a device, pipe or socket."
    assert refusal_of(policy, folders / "pipe") == f"{folders / 'pipe'} is not a file, but a device, pipe or socket."
    assert refusal_of(policy, folders / "null") == f"{folders / 'null'} {NO_PATH}"
    assert refusal_of(policy, folders / "circle.png").startswith(str(folders / "circle.png"))


def test_a_root_of_everything_does_not_hold_the_systems_own(tmp_path):
    everything = SourcePolicy(root="/")
    noise(60, 60).save(tmp_path / "a.png")
    assert prepare_picture(tmp_path / "a.png", ImageSettings(policy=everything)).grid == (4, 4)
    for name in ("/proc/self/status", "/proc/self/cwd/x", "/dev/null", "/sys/kernel", "/proc/nothing"):
        if name != "/proc/self/cwd/x":  # a link to a folder like others
            with pytest.raises(InputError, match="the policy allows no path there"):
                everything.check_path(name)
    assert SourcePolicy().check_path("/proc/self/status") == Path("/proc/self/status")


def test_capitals_are_taken_as_the_file_system_takes_them(folders):
    policy = SourcePolicy(root=folders)
    capital = folders.parent / "ROOT" / "a.png"
    if capital.exists():
        pytest.skip("this file system does not tell capitals from small letters")
    assert refusal_of(policy, capital) == f"{capital} {NO_PATH}"
    assert refusal_of(policy, folders / "A.png") == f"{folders / 'A.png'} does not exist."


@pytest.mark.parametrize("way", ["folder by folder", "compared"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_that_is_put_there_meanwhile_is_not_followed(folders, tmp_path, monkeypatch, way, what):
    """Between the check and the opening."""
    policy = SourcePolicy(root=folders)
    if way == "compared":
        monkeypatch.setattr(os, "supports_dir_fd", set())
    (tmp_path / "secret").mkdir()
    noise(60, 60, seed=9).save(tmp_path / "secret" / "b.png")
    real = SourcePolicy.check_path

    def check_then_exchange(self, path, error=InputError):
        place = real(self, path, error)
        if what == "file":
            (folders / "inner" / "b.png").unlink()
            (folders / "inner" / "b.png").symlink_to(tmp_path / "secret" / "b.png")
        else:
            (folders / "inner").rename(tmp_path / "moved")
            (folders / "inner").symlink_to(tmp_path / "secret")
        return place

    monkeypatch.setattr(SourcePolicy, "check_path", check_then_exchange)
    with pytest.raises(InputError, match="the policy allows no path there"):
        policy.open_path(folders / "inner" / "b.png")


@pytest.mark.parametrize("way", ["folder by folder", "compared"])
def test_both_ways_of_opening_read_the_same(folders, monkeypatch, way):
    if way == "compared":
        monkeypatch.setattr(os, "supports_dir_fd", set())
    policy = SourcePolicy(root=folders)
    os.mkfifo(folders / "pipe")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    with policy.open_path(folders / "inner" / "b.png") as file:
        assert file.read() == (folders / "inner" / "b.png").read_bytes()
    for name, problem in (
        ("inner", IsADirectoryError),
        (".", IsADirectoryError),
        ("absent", FileNotFoundError),
        ("absent/x", FileNotFoundError),
        ("a.png/x", NotADirectoryError),
        ("pipe", InputError),
        ("out.png", InputError),
    ):
        with pytest.raises(problem):
            policy.open_path(folders / name)
    if before:  # every descriptor is closed
        assert len(os.listdir("/proc/self/fd")) == before


def test_without_a_root_a_path_is_read_as_before(folders, monkeypatch):
    policy = SourcePolicy()
    assert policy.check_path("a/../b") == Path("a/../b")
    with policy.open_path(folders / "out.png") as file:
        assert file.read() == (folders.parent / "outside.png").read_bytes()
    with pytest.raises(InputError, match="a path is given as int, but must be text"):
        policy.check_path(3)
    with pytest.raises(InputError, match="a path given as int is not read"):
        SourcePolicy(root=folders).check_path(3)
    assert policy_module.SYSTEM
