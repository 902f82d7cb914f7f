"""Med-MAT's files, divisions and questions."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from lightning_mtl import MultiTaskModule
from lightning_mtl.data import (
    DataFileError,
    DatasetNotFoundError,
    MedMATDataModule,
    MultipleChoice,
    medmat_registry,
    parse_answers,
    to_multiple_choice,
)
from lightning_mtl.nn import LeNetEncoder, TaskConditionedEncoder
from lightning_mtl.tasks import MulticlassClassification
from tests.data.med_mat_tree import LABELS, write_med_mat


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_med_mat(tmp_path_factory.mktemp("med_mat"))


def module_of(root: Path, **options: object) -> MedMATDataModule:
    return MedMATDataModule(root, **{"size": (16, 16), "batch_size": 4, "num_workers": 0, **options})


# ---------------------------------------------------------------------- questions
def test_an_item_is_asked_in_the_same_way_every_time_and_others_in_other_ways() -> None:
    made = [to_multiple_choice("covid", LABELS, ["one?", "two?"], key=str(key)) for key in range(200)]
    again = [to_multiple_choice("covid", LABELS, ["one?", "two?"], key=str(key)) for key in range(200)]
    assert made == again
    assert {question.question for question in made} == {"one?", "two?"}
    assert all(question.options[question.answer] == "covid" for question in made)
    assert all(len(set(question.options)) == 4 for question in made)
    places = Counter(question.answer for question in made)
    assert set(places) == {0, 1, 2, 3}
    assert min(places.values()) > 25  # 50 expected, standard deviation 6
    assert {label for question in made for label in question.options} == set(LABELS)


def test_labels_that_are_right_too_are_no_wrong_options() -> None:
    for key in range(50):
        made = to_multiple_choice(["Covid ", "scar"], LABELS, ["?"], key=str(key))
        right = {"Covid ", "covid", "scar"}
        assert sum(option in right for option in made.options) == 1
        assert made.options[made.answer] in right
        assert len(made.options) == 4


def test_few_labels_make_few_options_and_letters_follow_the_order() -> None:
    made = to_multiple_choice("yes", ["yes", "no"], ["Is it?"], key="a")
    assert sorted(made.options) == ["no", "yes"]
    assert made.letter == "AB"[made.answer]
    assert MultipleChoice("Is it?", ("no", "yes"), 1).text.splitlines()[1:3] == ["A: no", "B: yes"]
    with pytest.raises(ValueError, match=r"must hold a label that is wrong for item 'a', got \['YES'\]"):
        to_multiple_choice("yes", ["YES"], ["?"], key="a")
    with pytest.raises(ValueError, match="max_options must be from 2 to 4, got 5"):
        to_multiple_choice("yes", ["no"], ["?"], key="a", max_options=5)
    with pytest.raises(ValueError, match="item 'a' must have a label and an instruction"):
        to_multiple_choice([], ["no"], ["?"], key="a")


@pytest.mark.parametrize(
    ("reply", "place"),
    [("B", 1), ("b", 1), ("(d) a scar", 3), ("The answer is C.", 2), ("**A**", 0), ("Dog", -1), ("", -1), ("none", -1)],
)
def test_the_first_letter_that_stands_alone_is_the_answer(reply: str, place: int) -> None:
    answers, unparsed = parse_answers([reply])
    assert answers.tolist() == [place]
    assert unparsed == (place == -1)


def test_the_letter_of_no_option_is_not_understood() -> None:
    answers, unparsed = parse_answers(["C", "C", "what?", "A"], [2, 3, 4, 4])
    assert answers.tolist() == [-1, 2, -1, 0]
    assert unparsed == 0.5
    assert parse_answers([])[1] == 0


# ---------------------------------------------------------------------- files
def test_batches_hold_images_questions_and_places_of_answers(tree: Path) -> None:
    data = module_of(tree)
    data.setup("fit")
    inputs, targets = next(iter(data.train_dataloader()))
    assert inputs["image"].shape == (4, 3, 16, 16)
    assert inputs["image"].dtype == torch.float32
    assert inputs["task"].dtype == targets["answer"].dtype == torch.int64
    assert len(inputs["question"]) == 4
    for question, count, answer in zip(inputs["question"], inputs["num_options"], targets["answer"], strict=True):
        assert question.count(": ") == count
        assert 0 <= answer < count
    assert data.subsets == [1, 2, 3, 4, 5]


def test_the_answer_is_that_of_the_file(tree: Path) -> None:
    data = module_of(tree, train_on=[1])
    data.setup()
    rows = {row["id"]: row for row in json.loads((tree / "Aggregated_Subsets" / "Subset--01-train.json").read_text())}
    for split in ("train", "val", "test"):
        for record in data.datasets[split].records:
            row = rows[record.id]
            assert "ABCD"[record.answer] == row["Answer-choice"]
            assert f"{row['Answer-choice']}: {row['Answer']}" in record.question


def test_a_subset_is_divided_by_its_own_files_or_nine_to_one(tree: Path) -> None:
    data = module_of(tree, train_on=[1, 2], test_on=[1, 2, 5])
    data.setup()
    assert data.counts("test") == {1: 2, 2: 20, 5: 20}
    assert data.counts("val") == {1: 2, 2: 2}
    assert data.counts("train") == {1: 16, 2: 18}
    names = {split: {r.image for r in data.datasets[split].records} for split in ("train", "val", "test")}
    assert not names["train"] & names["val"]
    assert not names["train"] & names["test"]
    assert not names["val"] & names["test"]
    assert data.chance() == pytest.approx({1: 0.25, 2: 0.25, 5: 0.5})
    again, other = module_of(tree, train_on=[1, 2]), module_of(tree, train_on=[1, 2], seed=1)
    again.setup()
    other.setup()
    assert {r.image for r in again.datasets["train"].records} == names["train"]
    assert {r.image for r in other.datasets["train"].records} != names["train"]


def test_the_cap_keeps_as_many_of_each_label_as_possible(tree: Path) -> None:
    data = module_of(tree, train_on=[2], cap=10)
    data.setup("fit")
    assert Counter(r.label for r in data.datasets["train"].records) == dict.fromkeys(LABELS, 2)


def test_small_subsets_are_not_trained_on_unless_named(tree: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tree, tmp_path / "copy")
    data = module_of(root, min_items=21)
    data.setup()
    assert data.subsets == [2]  # the only one with a test file, 40 items
    named = module_of(root, min_items=21, train_on=[3])
    named.setup()
    assert named.subsets == [3]


def test_the_target_decides_what_is_trained_on(tree: Path) -> None:
    pools = {"related": [1, 2, 3], "unrelated": [5], "without:task": [1, 5], "all": [1, 2, 3, 5]}
    for condition, expected in pools.items():
        data = module_of(tree, table=tree / "README.md", target=4, condition=condition)
        data.setup()
        assert sorted(data.counts("train")) == expected
        assert data.counts("test") == {4: 20}
    single = module_of(tree, table=tree / "README.md", target=4, allow_shared=(1,))
    single.setup("fit")
    assert sorted(single.counts("train")) == [3]


def test_the_table_of_the_original_data_sets_has_a_column_of_names(tree: Path) -> None:
    assert medmat_registry(tree / "README.md").values("3")["modality"] == "ultrasound"
    original = medmat_registry(tree / "README.md", "original")
    assert list(original) == ["1"]
    assert original.values("1") == {"modality": "x-ray", "area": "lung", "task": "covid19"}
    with pytest.raises(DataFileError, match=r"Subset--01-train\.json': must hold a table \| No"):
        medmat_registry(tree / "Aggregated_Subsets" / "Subset--01-train.json")


def test_images_that_are_tested_too_are_not_trained_on(tree: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tree, tmp_path / "copy")
    images = root / "med-mat"
    for number in range(3):  # subset 4 holds three images of subset 1 again
        shutil.copy(images / "Set_1" / f"train_{number}.PNG", images / "Set_4" / f"train_{number}.PNG")
    data = module_of(root, train_on=[1], test_on=[4])
    data.setup()
    clean = module_of(tree, train_on=[1], test_on=[4])
    clean.setup()
    assert clean.leaked == {}
    held = {r.image.name for r in data.datasets["val"].records}
    leaked = {f"train_{number}.PNG" for number in range(3)} - held
    assert data.leaked == {1: len(leaked)}
    kept = {r.image.name for r in data.datasets["train"].records}
    assert kept == {r.image.name for r in clean.datasets["train"].records} - leaked


def test_missing_images_are_counted_at_setup(tree: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tree, tmp_path / "copy")
    for number in range(7):
        (root / "med-mat" / "Set_3" / f"train_{number}.PNG").unlink()
    expected = r"missing med-mat/Set_3/train_\d\.png(, med-mat/Set_3/train_\d\.png){4} and 2 more.* 7 of 120 images"
    with pytest.raises(DatasetNotFoundError, match=expected):
        module_of(root).setup()
    module_of(root, train_on=[1]).setup()  # what is not used need not be there


def test_files_are_found_whatever_their_case_and_below_med_mat_too(tree: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tree, tmp_path / "copy")
    folder = root / "med-mat" / "original_medical_datasets"
    shutil.move(root / "Aggregated_Subsets", folder)
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("Subset", "ori").replace("subset", "Ori"))
    data = module_of(root, collection="original")
    data.setup("fit")
    assert data.subsets == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("group_by", ["subset", "modality"])
def test_answers_are_divided_into_tasks(tree: Path, group_by: str) -> None:
    data = module_of(tree, table=tree / "README.md", group_by=group_by)
    data.setup()
    expected = {"modality": {"ct", "ultrasound"}, "subset": {f"subset_0{number}" for number in range(1, 6)}}
    _, targets = next(iter(data.train_dataloader()))
    assert set(targets) == set(data.ignore_values) == expected[group_by]
    assert (torch.stack(list(targets.values())) != -100).sum(0).tolist() == [1, 1, 1, 1]


def test_questions_can_be_made_from_the_labels(tree: Path) -> None:
    def questions(seed: int) -> dict[str, tuple[str, int]]:
        data = module_of(tree, options="made", train_on=[1], seed=seed)
        data.setup()
        return {r.id: (r.question, r.answer) for s in ("train", "val", "test") for r in data.datasets[s].records}

    first = questions(0)
    assert first == questions(0) != questions(1)
    rows = {row["id"]: row for row in json.loads((tree / "Aggregated_Subsets" / "Subset--01-train.json").read_text())}
    for identity, (question, answer) in first.items():
        assert f"{'ABCD'[answer]}: {rows[identity]['Answer']}" in question.splitlines()


def test_several_labels_of_an_item_are_separated(tree: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tree, tmp_path / "copy")
    path = root / "Aggregated_Subsets" / "Subset--01-train.json"
    rows = json.loads(path.read_text())
    for row in rows:
        row["Answer"] += "; other"
    path.write_text(json.dumps(rows))
    data = module_of(root, options="made", label_separator=";", train_on=[1])
    data.setup()
    by_id = {row["id"]: row["Answer"] for row in rows}
    for record in data.datasets["train"].records:
        right = {label.strip() for label in by_id[record.id].split(";")}
        options = [line[3:] for line in record.question.splitlines() if line[1:3] == ": "]
        assert len(set(options) & right) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Answer-choice": "E"}, r"Subset--01-train\.json': record '1-3': 'Question-choice' must have lines.*'E'"),
        ({"Question-choice": "What?"}, r"record '1-3': 'Question-choice' must have lines.*letters \[\]"),
        ({"image": "../secret.png"}, r"record '1-3': 'image' must be a path below the root, got '\.\./secret\.png'"),
        ({"Answer-choice": None}, r"record '1-3' must have 'Answer-choice'"),
    ],
    ids=["no option", "no options", "outside", "no answer"],
)
def test_a_record_that_cannot_be_used_is_named(
    tree: Path, tmp_path: Path, change: dict[str, str | None], message: str
) -> None:
    root = shutil.copytree(tree, tmp_path / "copy")
    path = root / "Aggregated_Subsets" / "Subset--01-train.json"
    rows = json.loads(path.read_text())
    rows[3] = {key: value for key, value in {**rows[3], **change}.items() if value is not None}
    path.write_text(json.dumps(rows))
    with pytest.raises(DataFileError, match=message):
        module_of(root).setup()


def test_files_and_arguments_that_cannot_be_used_are_refused(tree: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tree, tmp_path / "copy")
    for text, message in (("{", "must be json in UTF-8"), ("[]", "must be a list of records, not empty")):
        (root / "Aggregated_Subsets" / "Subset--01-train.json").write_text(text)
        with pytest.raises(DataFileError, match=rf"Subset--01-train\.json': {message}"):
            module_of(root).setup()
    with pytest.raises(DatasetNotFoundError, match=r"missing Aggregated_Subsets/\*-09-train\.json"):
        module_of(tree, test_on=[9]).setup()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetNotFoundError, match=r"missing Aggregated_Subsets/.*github"):
        module_of(tmp_path / "empty").setup()
    with pytest.raises(ValueError, match="target chooses the subsets by their factors"):
        module_of(tree, target=4)
    with pytest.raises(ValueError, match=r"group_by must be 'subset' or, with table=.*got 'modality'"):
        module_of(tree, group_by="modality")
    with pytest.raises(ValueError, match="cap and size must be positive"):
        module_of(tree, cap=0)
    with pytest.raises(ValueError, match="collection must be 'aggregated' or 'original'"):
        module_of(tree, collection="all")


def test_a_small_network_reads_the_batches(tree: Path) -> None:
    data = module_of(tree, group_by="subset")
    data.setup("fit")
    encoder = TaskConditionedEncoder(LeNetEncoder(3, 16, (4, 6), 3, 8), len(data.subsets))
    tasks = {name: MulticlassClassification(4) for name in data.ignore_values}
    module = MultiTaskModule(encoder, tasks)
    batch = next(iter(data.train_dataloader()))
    loss = module.training_step(batch)
    loss.backward()
    assert loss.isfinite()
    assert encoder.embedding.weight.grad is not None
