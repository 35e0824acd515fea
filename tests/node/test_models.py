"""Models in directories: what is found, what it is called, and what is wrong with it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from p2p_node import models
from p2p_node.cli import cli
from p2p_node.config import ConfigError, load_config
from p2p_node.datadir import DataDir, DataDirLocked
from p2p_node.errors import UserError
from p2p_node.executor import builtin_places
from p2p_node.models import builtin_models, find_models, models_in, places_of
from p2p_node.tasks import tokenizers_of

SAMPLER = builtin_places()["digits-8x8"].path
TEXT = builtin_places()["kjv-2m"].path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a sampler called ``mine``, and things that aren't models."""
    shutil.copytree(SAMPLER, tmp_path / "mine")
    (tmp_path / "notes").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "config.json").write_text("{")
    (tmp_path / "README.md").write_text("Models.")
    return tmp_path


def test_models_directly_under_a_folder_are_found_by_their_directories_names(folder: Path) -> None:
    (found,) = models_in(folder)
    assert (found[0].name, found[1].name, found[1].path) == ("diffusion.sample", "mine", folder / "mine")
    assert models_in(folder / "mine") == [found]


def test_they_are_offered_beside_the_built_in_ones(folder: Path) -> None:
    served = find_models([folder])
    assert served[: len(builtin_models())] == builtin_models()
    place = places_of(served)["mine"]
    assert (place.workload, place.digest) == ("diffusion.sample", builtin_places()["digits-8x8"].digest)


def test_a_folder_given_twice_counts_once(folder: Path) -> None:
    assert find_models([folder, folder / "mine"]) == find_models([folder])


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"[]", "config.json must hold an object, got list"),
        ("config.json", b'{"model_type": "llama"}', "architectures must be"),
        ("config.json", b'{"model_type": "unheard-of"}', "must be a model of one of lm.generate, "),
        ("sampler.json", b"{}", "model.safetensors cannot be read"),
    ],
)
def test_a_broken_directory_is_named_with_its_rule(
    tmp_path: Path, name: str, content: bytes, rule: str
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        find_models([tmp_path])
    assert str(broken) in str(refused.value)
    assert rule in str(refused.value)


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = folder / "mine" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"mine: model\.safetensors"):
        find_models([folder])


def test_two_models_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "mine").rename(folder / "kjv-2m")
    with pytest.raises(UserError, match="are both called 'kjv-2m'"):
        find_models([folder])


def test_a_name_that_no_job_file_can_have_is_refused(folder: Path) -> None:
    (folder / "mine").rename(folder / "my model")
    with pytest.raises(UserError, match="its name must be up to 64 letters"):
        find_models([folder])


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no model and holds none"):
        find_models([tmp_path])


def test_config_names_folders_absolutely(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('models = ["~/models", "/srv/models"]\n')
    assert load_config(file, {}).models == ("~/models", "/srv/models")
    file.write_text('models = ["models"]\n')
    with pytest.raises(ConfigError, match=r"config\.toml:1: models"):
        load_config(file, {})


def test_the_list_tells_where_each_model_comes_from(folder: Path, tmp_path: Path) -> None:
    arguments = ["model", "list", "--datadir", str(tmp_path / "node"), "--models", str(folder), "-o", "json"]
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(cli, arguments).stdout)}
    assert rows["kjv-2m"]["source"] == "built in"
    assert (rows["mine"]["source"], rows["mine"]["workload"]) == (str(folder), "diffusion.sample")
    assert rows["mine"]["size"] == rows["digits-8x8"]["size"] > 0 == rows["path-tracer"]["size"]


def test_validate_knows_the_models_it_is_given(folder: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    task = "task: {workload: diffusion.sample, model: mine, labels: [1]}\n"
    job.write_text(f"apiVersion: p2p/v1\nkind: Job\nname: digits\n{task}")
    arguments = ["job", "validate", str(job), "--datadir", str(tmp_path / "node")]
    refused = CliRunner().invoke(cli, arguments)
    assert isinstance(refused.exception, UserError)
    assert "task.model: 'mine' isn't known here; known: digits-8x8" in str(refused.exception)
    assert CliRunner().invoke(cli, [*arguments, "--models", str(folder)]).exit_code == 0
    job.write_text(
        "apiVersion: p2p/v1\nkind: Job\nname: e\ntask: {workload: embed.text, model: m, texts: [a]}\n"
    )
    refused = CliRunner().invoke(cli, arguments)
    assert "known here, nor another model for embed.text; 'p2p-node model pull" in str(refused.exception)


# --- Adding and removing -------------------------------------------------------------------------


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_a_model_is_added_under_a_name_and_removed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_refuse_what_doesnt_run", lambda directory: None)
    node = str(tmp_path / "node")
    assert call("model", "add", str(folder / "mine"), "--name", "ours", "--datadir", node).exit_code == 0
    listed = call("model", "list", "--datadir", node, "-o", "json").stdout
    (row,) = [row for row in json.loads(listed) if row["name"] == "ours"]
    assert row["source"] == str(tmp_path / "node" / "models")
    assert call("model", "rm", "ours", "--datadir", node).exit_code == 0
    assert "ours" not in call("model", "list", "--datadir", node, "-o", "json").stdout
    again = call("model", "rm", "ours", "--datadir", node)
    assert "no model called 'ours' was added" in str(again.exception)


@pytest.mark.parametrize(
    ("returncode", "stdout", "stderr", "rule"),
    [(2, b"it lacks a tensor", b"", "it lacks a tensor"), (1, b"", b"Traceback\nOops", "failed: Oops")],
)
def test_what_doesnt_run_isnt_taken(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    returncode: int,
    stdout: bytes,
    stderr: bytes,
    rule: str,
) -> None:
    ended = subprocess.CompletedProcess([], returncode, stdout, stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    refused = call("model", "add", str(folder / "mine"), "--datadir", str(tmp_path / "node"))
    assert rule in str(refused.exception)
    assert list((tmp_path / "node" / "models").iterdir()) == []


def test_one_broken_tokenizer_keeps_no_other_model_from_being_used(tmp_path: Path) -> None:
    shutil.copytree(TEXT, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    places = places_of(find_models([tmp_path / "broken"]))
    assert "kjv-2m" in tokenizers_of(places) and "broken" not in tokenizers_of(places)
    job = tmp_path / "job.yaml"
    for name, rule in (("kjv-2m", ""), ("broken", "the tokenizer.json of 'broken' can't be used")):
        task = f"task: {{workload: lm.generate, model: {name}, prompt: In}}\n"
        job.write_text(f"apiVersion: p2p/v1\nkind: Job\nname: verse\n{task}")
        arguments = ("job", "validate", str(job), "--datadir", str(tmp_path / "node"))
        told = call(*arguments, "--models", str(tmp_path / "broken"))
        assert rule in str(told.exception) if rule else told.exit_code == 0


@pytest.mark.parametrize(("name", "rule"), [("kjv-2m", "is there already"), ("../x", "must be letters")])
def test_names_that_cant_be_added(folder: Path, tmp_path: Path, name: str, rule: str) -> None:
    node = str(tmp_path / "node")
    refused = call("model", "add", str(folder / "mine"), "--name", name, "--datadir", node)
    assert rule in str(refused.exception)


def test_a_broken_model_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    (folder / "mine" / "model.safetensors").write_bytes(b"short")
    refused = call("model", "add", str(folder / "mine"), "--datadir", str(tmp_path / "node"))
    assert isinstance(refused.exception, UserError)
    assert not (tmp_path / "node" / "models").exists()


def test_nothing_is_removed_under_a_running_node(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_refuse_what_doesnt_run", lambda directory: None)
    node = tmp_path / "node"
    call("model", "add", str(folder / "mine"), "--datadir", str(node))
    with DataDir.open(node).lock():
        refused = call("model", "rm", "mine", "--datadir", str(node))
    assert isinstance(refused.exception, DataDirLocked)
    assert (node / "models" / "mine").is_dir()
