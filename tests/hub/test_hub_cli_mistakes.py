"""Mistakes that people make at the command line: one line that names what is wrong, and an exit code."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from cloud_hub import access
from cloud_hub.cli import main
from cloud_hub.database import Database
from cloud_hub.errors import WrongUse
from cloud_hub.home import Home, Settings
from models.manifest import Manifest
from models.store import describe_file, write_release


def run(*arguments: object) -> Result:
    """A verb in this process; anything but our own errors is raised here."""
    return CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)


def refused(*arguments: object, code: tuple[int, ...] = (1, 2, 3)) -> str:
    """What a verb says when it refuses."""
    done = run(*arguments)
    assert done.exit_code in code, done.output
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("Error: ")]
    return line


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Offline keys, a hub's home, a release and a signed list; tests must not change them."""
    folder = tmp_path_factory.mktemp("made")
    assert run("keys", "init", "--offline", folder / "offline").exit_code == 0
    init = run("init", "--home", folder / "home", "--root", folder / "offline/hub/root.json")
    assert init.exit_code == 0, init.output
    weights = folder / "weights.gguf"
    weights.write_bytes(b"weights")
    fields = {
        "kind": "model",
        "name": "tiny",
        "version": "1.0.0",
        "format": "gguf",
        "precision": "f16",
        "license": "Apache-2.0",
        "files": [describe_file(weights, weights.name).model_dump(mode="json")],
    }
    write_release(folder / "release", Manifest.model_validate(fields), {weights.name: weights})
    key = folder / "offline/targets-1.pem"
    signed = run(
        "release", "sign", folder / "release", "--targets", folder / "offline/targets.json", "--key", key
    )
    assert signed.exit_code == 0, signed.output
    assert run("audit", "export", "--home", folder / "home", "--out", folder / "export").exit_code == 0
    return folder


VERBS = {
    "--root": "init --home new --root PATH",
    "--home": "fleet status --home PATH",
    "serve --home": "serve --home PATH",
    "sign FOLDER": "release sign PATH --targets offline/targets.json --key offline/targets-1.pem",
    "--targets": "release sign release --targets PATH --key offline/targets-1.pem",
    "--key": "release sign release --targets offline/targets.json --key PATH",
    "publish FOLDER": "release publish PATH --home home",
    "publish --targets": "release publish release --home home --targets PATH",
    "--key-file": "upstream add --home home --name n --url http://127.0.0.1:1 --model m --key-file PATH",
    "verify FILES": "audit verify PATH --device-keys export/device-keys.json",
    "verify --device-keys": "audit verify export/keyring.jsonl --device-keys PATH",
    "open --keyring": "audit open export/keyring.jsonl --device-keys export/device-keys.json"
    " --keyring PATH --auditor-key offline/auditor.pem",
    "open --auditor-key": "audit open export/keyring.jsonl --device-keys export/device-keys.json"
    " --keyring export/keyring.jsonl --auditor-key PATH",
}


@pytest.mark.parametrize("mistake", ["missing", "empty", "garbage", "folder"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_path_is_named(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, mistake: str
) -> None:
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "copy"))
    wrong = Path("wrong-one")
    if mistake == "folder":
        wrong.mkdir()
    elif mistake != "missing":
        wrong.write_bytes(b"" if mistake == "empty" else b"gar\xffbage")
    said = refused(*VERBS[verb].replace("PATH", str(wrong)).split())
    if (verb, mistake) != ("open --keyring", "empty"):  # a ring without keys is right: all were erased
        assert str(wrong) in said
    assert not Path("new").exists()


def test_the_offline_root_is_pointed_to_the_folder_that_is_carried(made: Path, tmp_path: Path) -> None:
    said = refused("init", "--home", tmp_path, "--root", made / "offline/root.json", code=(2,))
    assert "no snapshot.pem, no timestamp.pem" in said and said.endswith(f"give {made}/offline/hub/root.json")
    said = refused("init", "--home", tmp_path, "--root", made / "offline/hub/targets.json", code=(2,))
    assert "give the root.json in the folder hub" in said


@pytest.mark.parametrize("port", ["--people-port", "--device-port", "--broker-port"])
@pytest.mark.parametrize("value", ["99999", "0", "-1"])
def test_a_port_that_is_none_is_named(made: Path, tmp_path: Path, port: str, value: str) -> None:
    root = made / "offline/hub/root.json"
    assert port in refused("init", "--home", tmp_path, "--root", root, port, value, code=(2,))


@pytest.mark.parametrize("host", ["", "https://hub.example", "a b", "hub.example:8443", "fábrica", "a" * 65])
@pytest.mark.parametrize("option", ["--host", "--broker-host"])
def test_a_host_that_fits_no_certificate_is_named(made: Path, tmp_path: Path, option: str, host: str) -> None:
    root = made / "offline/hub/root.json"
    said = refused("init", "--home", tmp_path / "new", "--root", root, option, host, code=(2,))
    assert said.startswith(f"Error: {option}: a name or an address")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "serve --broker mqtts://here:99999",
        "serve --broker mqtts://here:0",
        "serve --broker here:8883",
        "upstream add --name n --model m --url http://[half",
        "upstream add --name n --model m --url http://here:port",
        "upstream add --name n --model m --url here",
        "device token --group g --hours nan",
        "token create --role viewer --days inf",
        "rollout create --release x@1.0.0 --group g --probation-seconds nan",
    ],
)
def test_an_address_or_a_time_that_is_none_is_named(made: Path, arguments: str) -> None:
    verb, _, address = arguments.rpartition(" ")
    said = refused(*arguments.split(), "--home", made / "home", code=(2,))
    assert verb.rpartition(" ")[2] in said and address in said


@pytest.mark.parametrize("option", ["--name", "--model"])
def test_an_upstream_has_a_name_and_a_model(made: Path, option: str) -> None:
    given = {"--name": "n", "--model": "m", "--url": "http://here", "--home": made / "home", option: ""}
    said = refused("upstream", "add", *(each for pair in given.items() for each in pair), code=(2,))
    assert said == f"Error: {option}: must not be empty"


@pytest.mark.parametrize("group", ["", " ", "line-1 ", "li\nne"])
def test_a_device_joins_a_group_that_has_a_name(made: Path, group: str) -> None:
    said = refused("device", "token", "--home", made / "home", "--group", group, code=(2,))
    assert said.startswith("Error: --group: ")


def test_the_trail_of_a_device_that_never_was_is_not_an_empty_export(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("audit", "export", "--home", made / "home", "--out", out)
    assert "press-99" in refused(*arguments, "--device", "press-99", code=(2,))
    assert not out.exists()


def test_an_init_that_fails_can_be_run_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, root = tmp_path / "home", made / "offline/hub/root.json"
    arguments = ("init", "--home", home, "--root", root)
    said = refused(*arguments, "--database", "postgresql://hub:hunter2@127.0.0.1:1/outpost", code=(1,))
    assert "postgresql://hub:***@127.0.0.1:1/outpost" in said and "psycopg" not in said
    assert not home.exists()
    # Keys that do not belong together are found after the database was made: no token may outlive that.
    mixed = shutil.copytree(made / "offline/hub", tmp_path / "mixed")
    shutil.copyfile(mixed / "timestamp.pem", mixed / "snapshot.pem")
    assert "snapshot.pem" in refused("init", "--home", home, "--root", mixed / "root.json", code=(3,))
    token = json.loads(run(*arguments, "--json").output)["token"]
    with _database(home) as opened, opened.read() as connection:
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM api_token").scalar() == 1
        assert access.authenticate(connection, token, 0.0).role is access.Role.ADMIN
    assert "holds a hub already" in refused(*arguments, code=(3,))


@contextlib.contextmanager
def _database(home: Path) -> Iterator[Database]:
    with contextlib.closing(Database.open(Home(home).database_url(Home(home).settings()))) as opened:
        yield opened


def test_a_home_that_lost_a_key_names_it(made: Path, tmp_path: Path) -> None:
    home = Home(shutil.copytree(made / "home", tmp_path / "home"))
    for name, read in (("director.pem", home.director), ("ca.key", home.authority)):
        (home.root / "keys" / name).write_bytes(b"")
        with pytest.raises(Exception, match=name):
            read()
    home.settings_file.write_text('{"hosts": ["a"], "colour": 1}')
    with pytest.raises(WrongUse, match=r"hub\.json: colour"):
        home.settings()


def test_devices_are_told_another_machines_broker(made: Path, tmp_path: Path) -> None:
    root, broker = made / "offline/hub/root.json", "mqtt.plant.example"
    done = run("init", "--home", tmp_path, "--root", root, "--broker-host", broker, "--broker-port", 8884)
    assert done.exit_code == 0, done.output
    settings = Home(tmp_path).settings()
    assert settings.broker == settings.external_broker == (broker, 8884)
    certificate = x509.load_pem_x509_certificate((tmp_path / "tls/broker.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [broker]
    assert (tmp_path / "tls/broker.key").stat().st_mode & 0o777 == 0o600


def test_a_broker_on_the_hub_stays_embedded() -> None:
    assert Settings(hosts=("hub", "10.0.0.5")).external_broker is None
    one = Settings(hosts=("hub", "10.0.0.5"), broker_host="10.0.0.5")
    assert (one.broker, one.external_broker) == (("10.0.0.5", 8883), None)
