"""`lra prepare all` makes what can be had; `lra check` finds whatever is not as it has to be."""

import json
import os
import shutil

import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from helpers import arena, sources, sources_retrieval
from tensorflow_datasets.proto import tf_example_pb2

from lra_tasks.data.contents import contents
from lra_tasks.data.dataset import load
from lra_tasks.data.prepare import prepare, prepare_all
from lra_tasks.data.verify import check
from lra_tasks.errors import MissingData, UsageError
from lra_tasks.files import describe
from lra_tasks.tasks import ARENA, SPLITS, TASKS

NO_NETWORK = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "COLUMNS": "80"}
DATASETS = {
    "listops": "lra_listops/smoke/1.0.0",
    "text": "lra_text/smoke/1.0.0",
    "retrieval": "lra_retrieval/smoke/1.0.0",
    "image": "lra_image/smoke/1.0.0",
    "pathfinder": "lra_pathfinder/smoke-32/1.0.0",
    "pathx": "lra_pathfinder/smoke-128/1.0.0",
}


@pytest.fixture(scope="session")
def manual_dir(tmp_path_factory):
    """A folder with what the tasks that are read are made from."""
    folder = tmp_path_factory.mktemp("manual")
    sources.as_folder(sources.imdb(), folder)
    sources.as_archive(sources.cifar(), folder / "cifar-10-binary.tar.gz")
    sources.as_folder(sources_retrieval.acl(), folder)
    return folder


@pytest.fixture(scope="session")
def all_made(manual_dir, tmp_path_factory):
    """A data folder with the smoke datasets of the arena, and what `prepare_all` said; not to be changed."""
    root = tmp_path_factory.mktemp("all")
    return root, prepare_all(root, smoke=True, manual_dir=manual_dir, unofficial=True)


@pytest.fixture
def copied(all_made, tmp_path):
    """Copies datasets by their tasks' names into a data folder to spoil; returns that."""

    def copy(*names):
        for name in names:
            shutil.copytree(all_made[0] / DATASETS[name], tmp_path / "data" / DATASETS[name])
        return tmp_path / "data"

    return copy


def problems(root):
    """Dataset → what is wrong with it."""
    return {finding.dataset: finding.problems for finding in check(root)}


def rewrite(folder, change):
    """Lets `change` alter the examples of a dataset, split → list of protobufs, and writes them anew."""
    paths = {split: next(folder.glob(f"*-{split}.*")) for split in SPLITS}
    examples = {}
    for split, path in paths.items():
        reader = ArrayRecordReader(str(path))
        examples[split] = [tf_example_pb2.Example.FromString(record) for record in reader.read_all()]
        reader.close()
    change(examples)
    for split, path in paths.items():
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for example in examples[split]:
            writer.write(example.SerializeToString(deterministic=True))
        writer.close()


def write_manifest(root, task, what):
    """Makes the manifest agree with the files as they are now, or with the contents too."""
    folder = root / DATASETS[task]
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: describe(folder / name) for name in manifest["files"]}
    if what == "contents":
        config = folder.parent.name
        splits = {split: load(task, split, root, variant=config, verify=False) for split in SPLITS}
        manifest["contents"] = contents(splits, lambda done: None)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def label_of(example):
    return example.features.feature["label"].int64_list.value


# All that can be had


def test_prepare_all(all_made):
    root, outcomes = all_made
    assert list(outcomes) == list(DATASETS) == [task.name for task in ARENA]
    for name, outcome in outcomes.items():
        assert outcome == (root / DATASETS[name], False, None)
    assert not check(root / "nothing")
    calls = []
    again = prepare_all(root, smoke=True, progress=arena.Hook(lambda *call: calls.append(call[0])))
    assert again == {name: (folder, True, None) for name, (folder, _, _) in outcomes.items()}
    assert calls == [f"{name} is prepared in {root / DATASETS[name]}" for name in DATASETS]


def test_prepare_all_says_what_is_missing(copied, manual_dir, tmp_path):
    root = copied("listops", "pathfinder", "pathx")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "aclImdb").symlink_to(manual_dir / "aclImdb")
    arguments = (
        "prepare",
        "all",
        "--variant",
        "smoke",
        "--data-dir",
        root,
        "--manual-dir",
        tmp_path / "mine",
    )
    result = arena.lra(*arguments, "--unofficial", env=NO_NETWORK)
    assert result.returncode == 2, result
    table, *paragraphs = result.stdout.split("\n\n")
    rows = [line.split()[:2] for line in table.splitlines()[2:] if not line.startswith(" ")]
    assert rows == [
        ["listops", "exists"],
        ["text", "made"],
        ["retrieval", "missing"],
        ["image", "missing"],
        ["pathfinder", "exists"],
        ["pathx", "exists"],
    ]
    retrieval, image = (" ".join(paragraph.split()) for paragraph in paragraphs)
    assert retrieval.startswith("retrieval: acl-pairs-raw.tar.xz is missing in")
    assert image.startswith(
        "image: cifar-10-batches-bin or cifar-10-binary*.tar* or cifar-10-binary is missing in"
    )
    assert all("--manual-dir FOLDER" in paragraph for paragraph in (retrieval, image))
    assert "lra: 2 of 6 tasks are not prepared: retrieval, image." in result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80 + len(str(root))
    assert "Traceback" not in result.stderr


def test_prepare_all_prepared(all_made):
    result = arena.lra("prepare", "all", "--variant", "smoke", "--data-dir", all_made[0], env=NO_NETWORK)
    assert result.returncode == 0, result
    assert result.stdout.count("exists") == 6


def test_prepare_all_continues_after_any_error_but_a_request_to_stop(copied, monkeypatch):
    root = copied("listops")
    next((root / DATASETS["listops"]).glob("*test*")).unlink()
    asked = []

    def fail(task, *arguments, **options):
        asked.append(task.name)
        if task.name == "image":
            raise KeyboardInterrupt
        if task.name != "listops":
            raise MissingData("not there")
        return prepare(task, *arguments, **options)

    monkeypatch.setattr("lra_tasks.data.prepare.prepare", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare_all(root, smoke=True)
    assert asked == ["listops", "text", "retrieval", "image"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("all", "--variant", "release"), ["'release'", "smoke"]),
        (("all", "--manual-dir", "nowhere"), ["folder nowhere does not exist"]),
    ],
)
def test_what_prepare_refuses(arguments, words, tmp_path):
    result = arena.lra("prepare", *arguments, "--data-dir", tmp_path / "data", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert all(word in result.stderr for word in words), result.stderr
    assert list(tmp_path.iterdir()) == []


# What is right


def test_all_is_right(all_made):
    before = arena.snapshot(all_made[0])
    calls = []
    findings = check(all_made[0], progress=arena.Hook(lambda *call: calls.append(call)))
    assert [(finding.dataset, finding.problems) for finding in findings] == [
        (dataset, []) for dataset in DATASETS.values()
    ]
    assert findings[0].num_examples == {"train": 2000, "validation": 256, "test": 256}
    assert findings[1].shares() == findings[4].shares() == "50.0 to 50.0"
    assert findings[3].labels["test"] == {str(label): 6 + (label < 4) for label in range(10)}
    assert ("checking lra_listops/smoke/1.0.0", 2304, 2512) in calls
    assert arena.snapshot(all_made[0]) == before


def test_a_collection_and_the_release(tmp_path):
    """Datasets whose names and numbers of examples the code does not know."""
    for kind in ("left", "right"):
        for number in range(10):
            path = tmp_path / "files" / kind / str(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{kind} {number}")
    prepare("bytes", tmp_path / "data", variant="mine", manual_dir=tmp_path / "files")
    sources.as_folder(sources_retrieval.release(), tmp_path)
    files = next((tmp_path / "lra_release").rglob("tsv_data"))
    train = files / "new_aan_pairs.train.tsv"
    train.write_bytes(train.read_bytes() + (files / "new_aan_pairs.test.tsv").read_bytes())  # as published
    prepare("retrieval", tmp_path / "data", manual_dir=files, unofficial=True)
    assert problems(tmp_path / "data") == {"lra_bytes/mine/1.0.0": [], "lra_retrieval/default/1.0.0": []}


def test_one_task(copied):
    root = copied("listops", "pathx")
    assert [finding.dataset for finding in check(root, ["pathx"])] == [DATASETS["pathx"]]
    (finding,) = check(root, ["pathfinder"])
    assert finding.problems == [f"pathfinder is not prepared in {root}."]
    assert finding.mend == f"`lra prepare pathfinder --data-dir {root}` makes its dataset."
    with pytest.raises(UsageError, match="no task 'pathfnder'"):
        check(root, ["pathfnder"])


# What is wrong


def test_damaged_files(copied):
    root = copied("listops")
    folder = root / DATASETS["listops"]
    flipped, missing, cut = (next(folder.glob(f"*-{split}.*")) for split in SPLITS)
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    missing.unlink()
    os.truncate(cut, 1000)
    (folder / "stray").touch()
    (folder / ".DS_Store").touch()  # not a fault of the dataset
    (found,) = check(root)
    texts = " ".join(found.problems)
    assert f"{flipped.name} in {folder} was altered" in texts
    assert f"{missing.name} is missing in {folder}" in texts
    assert f"{cut.name} in {folder} has 1,000 bytes, expected" in texts
    assert "stray is not in the manifest" in texts
    assert len(found.problems) == 4
    assert found.mend.startswith("`lra prepare listops --overwrite --variant smoke --data-dir")


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("listops", "--overwrite"),
        ("text", "--overwrite --manual-dir FOLDER --unofficial"),
        ("retrieval", "--overwrite --manual-dir FOLDER --unofficial"),
    ],
)
def test_the_command_that_mends(copied, task, options):
    """What the dataset was made from is asked for again, and leave for it."""
    root = copied(task)
    next((root / DATASETS[task]).glob("*-test.*")).unlink()
    (finding,) = check(root)
    assert finding.mend == f"`lra prepare {task} {options} --variant smoke --data-dir {root}` makes it again."


def test_the_command_that_mends_what_was_downloaded(copied):
    root = copied("text")
    path = root / DATASETS["text"] / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["metadata"]["unofficial"]
    manifest["metadata"]["origin"] = TASKS["text"].builder_class().official.url
    path.write_text(json.dumps(manifest))
    (root / DATASETS["text"] / "stray").touch()
    (finding,) = check(root)
    assert finding.mend == f"`lra prepare text --overwrite --variant smoke --data-dir {root}` makes it again."


def test_the_command_that_makes_what_is_missing(tmp_path):
    """Text is downloaded, the others are not; what is damaged beyond reading is asked for alike."""
    found = {name: check(tmp_path, [name])[0].mend for name in ("text", "retrieval", "bytes")}
    assert found == {
        "text": f"`lra prepare text --data-dir {tmp_path}` makes its dataset.",
        "retrieval": f"`lra prepare retrieval --manual-dir FOLDER --data-dir {tmp_path}` makes its dataset.",
        "bytes": f"`lra prepare bytes --manual-dir FOLDER --data-dir {tmp_path}` makes its dataset.",
    }
    (tmp_path / "lra_retrieval" / "default" / "1.0.0").mkdir(parents=True)
    (finding,) = check(tmp_path)
    folder = tmp_path / "lra_retrieval" / "default" / "1.0.0"
    assert finding.problems == [f"{folder} has no manifest.json, so it is not whole."]
    assert "--overwrite --manual-dir FOLDER --data-dir" in finding.mend


@pytest.mark.parametrize("position", [0, 0.1, 0.9, -1])
def test_any_flipped_byte(copied, position):
    task = "image"
    root = copied(task)
    for path in (root / DATASETS[task]).glob("[!m]*"):  # the manifest is what the others are held against
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[int(position * len(content))] ^= 4
        path.write_bytes(damaged)
        assert problems(root)[DATASETS[task]], path.name
        path.write_bytes(content)
    assert problems(root) == {DATASETS[task]: []}


def test_folders_without_datasets(copied):
    root = copied("listops", "text")
    (root / DATASETS["listops"] / "manifest.json").unlink()
    for name in ("lra_listops/smoke/0.9.0", "lra_listops/smok/1.0.0", "lra_other/default/1.0.0"):
        (root / name).mkdir(parents=True)
    for name in (
        "mnist/3.0.1",
        "lra_listops/.incomplete-smoke/x",
        "lra_text/.incomplete-smoke/lra_text/smoke",
    ):
        (root / name).mkdir(parents=True)
    found = problems(root)
    assert found.pop(DATASETS["text"]) == []
    assert ["not a dataset of this version" in " ".join(found.pop(f"lra_{name}")) for name in (
        "listops/smoke/0.9.0", "listops/smok/1.0.0", "other/default/1.0.0"
    )] == [True] * 3  # fmt: skip
    ((dataset, (problem,)),) = found.items()
    assert dataset == DATASETS["listops"]
    assert "has no manifest.json" in problem


def exchange(examples):
    """Two labels of the training split, which stay as balanced as they were."""
    train = examples["train"]
    other = next(i for i, example in enumerate(train) if label_of(example)[0] != label_of(train[0])[0])
    label_of(train[0])[0], label_of(train[other])[0] = label_of(train[other])[0], label_of(train[0])[0]


def turn(examples):
    """One label of the test split."""
    label_of(examples["test"][7])[0] ^= 1


@pytest.mark.parametrize(
    ("task", "change"),
    [("listops", turn), ("pathfinder", exchange), ("pathfinder", turn), ("text", exchange), ("text", turn)],
)
def test_swapped_labels(copied, task, change):
    root = copied(task)
    rewrite(root / DATASETS[task], change)
    split = "train" if change is exchange else "test"
    (problem,) = problems(root)[DATASETS[task]]
    assert f"-{split}.array_record" in problem
    assert "altered" in problem
    write_manifest(root, task, "files")
    assert any(f"The sha256 of {split}" in problem for problem in problems(root)[DATASETS[task]])
    write_manifest(root, task, "contents")
    found = problems(root)[DATASETS[task]]
    if task == "text":  # no label follows from its review; only the numbers of both are known
        assert [problem[:34] for problem in found] == ["The labels of test are not balance"] * (
            change is turn
        )
        return
    first = "Example 0 of train: The label is " if change is exchange else "Example 7 of test: The label is "
    assert any(problem.startswith(first) for problem in found), found
    assert any("not balanced" in problem for problem in found) == (task == "pathfinder" and change is turn)


@pytest.mark.parametrize(
    ("task", "other"),
    [("listops", "test"), ("pathx", "test"), ("image", "validation"), ("retrieval", "test")],
)
def test_an_overlapping_split(copied, task, other):
    def overlap(examples):
        label = label_of(examples[other][5])[0]
        place = next(i for i, example in enumerate(examples["train"]) if label_of(example)[0] == label)
        examples["train"][place].CopyFrom(examples[other][5])

    root = copied(task)
    rewrite(root / DATASETS[task], overlap)
    (problem,) = problems(root)[DATASETS[task]]
    assert "-train.array_record" in problem
    write_manifest(root, task, "files")
    found = problems(root)[DATASETS[task]]
    assert any("The sha256 of train" in problem for problem in found)
    assert any("Repeated examples" in problem for problem in found)
    write_manifest(root, task, "contents")
    found = problems(root)[DATASETS[task]]
    assert any(f"Example 5 of {other} repeats example" in problem for problem in found), found
    drawn = task in ("listops", "pathx")
    assert any("differ from those drawn" in problem for problem in found) == drawn


def test_examples_that_are_gone(copied):
    root = copied("image")
    rewrite(root / DATASETS["image"], lambda examples: examples["test"].pop())
    write_manifest(root, "image", "files")
    left = "has {'train': 256, 'validation': 64, 'test': 63} examples, expected {'train': 256"
    (problem,) = problems(root)[DATASETS["image"]]
    assert f"The dataset {left}" in problem
    path = root / DATASETS["image"] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["num_examples"]["test"] -= 1
    path.write_text(json.dumps(manifest))
    (problem,) = problems(root)[DATASETS["image"]]
    assert f"The manifest {left}" in problem


def test_many_wrong_examples_are_counted(copied):
    def change(examples):
        for example in examples["train"]:
            label_of(example)[0] = (label_of(example)[0] + 1) % 10

    root = copied("listops")
    rewrite(root / DATASETS["listops"], change)
    write_manifest(root, "listops", "contents")
    assert [problem[:23] for problem in problems(root)[DATASETS["listops"]]] == [
        "Example 0 of train: The",
        "Example 1 of train: The",
        "Example 2 of train: The",
        "And 1,997 more of this ",
    ]


def test_labels_of_no_class(copied):
    root = copied("retrieval")

    def change(examples):
        label_of(examples["test"][3])[0] = 2

    rewrite(root / DATASETS["retrieval"], change)
    write_manifest(root, "retrieval", "contents")
    found = problems(root)[DATASETS["retrieval"]]
    assert "Example 3 of test: The label is 2, expected 0 to 1." in found


def test_what_cannot_be_read_does_not_stop_the_others(copied):
    root = copied("image", "text")
    folder = root / DATASETS["text"]
    next(folder.glob("*train*")).write_bytes(b"no records")
    write_manifest(root, "text", "files")
    found = problems(root)
    assert found[DATASETS["image"]] == []
    assert found[DATASETS["text"]]


# The command


def test_the_command(copied):
    root = copied("text", "image")
    result = arena.lra("check", "--data-dir", root, env={"COLUMNS": "80"})
    assert (result.returncode, result.stdout.count(" ok "), result.stdout.count("BAD")) == (0, 2, 0), result
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout + result.stderr
    turned = root / DATASETS["text"]
    rewrite(turned, turn)
    result = arena.lra("check", "--data-dir", root, env={"COLUMNS": "80"})
    assert result.returncode == 2
    bad, good = result.stdout.splitlines()[2:4]
    assert bad.split()[:2] == [DATASETS["text"], "BAD"]
    assert good.split()[:2] == [DATASETS["image"], "ok"]
    command = "- `lra prepare text --overwrite --manual-dir FOLDER --unofficial --variant smoke --data-dir"
    assert command in " ".join(result.stdout.split())
    assert result.stderr.endswith(f"lra: 1 of 2 datasets are damaged: {DATASETS['text']}.\n")
    assert arena.lra("check", "image", "--data-dir", root).returncode == 0


def test_nothing_to_check(tmp_path):
    result = arena.lra("check", "--data-dir", tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"Nothing is prepared in {tmp_path}. `lra prepare TASK` makes a dataset." in result.stderr
    result = arena.lra("check", "text", "--data-dir", tmp_path)
    assert result.returncode == 2
    assert "text is not prepared in" in result.stdout
    assert list(tmp_path.iterdir()) == []
