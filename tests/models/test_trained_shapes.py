"""What each scheme trains, how it starts, and what it refuses."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest

from memsim.errors import UsageError
from memsim.models.graph import ModelGraph
from memsim.models.lora import LoraConfig, n_trainable
from memsim.models.parts import part_names, vectors
from memsim.models.scheme import Scheme
from memsim.models.schemes import (
    SCHEMES,
    Full,
    Head,
    Norms,
    Prefix,
    Prompt,
    make_scheme,
    scheme_from_dict,
    scheme_to_dict,
)
from memsim.schedules.choices import choices_for
from memsim.schedules.lowering import lower
from memsim.schedules.optimizers import OptimizerConfig
from toy import toy_config
from toy_families import FAMILY_CHANGES, family_config

EXAMPLES = (LoraConfig(3, 5.0, ("q_proj",)), Norms(), Prefix(7), Prompt(9), Head(4), Full())


@pytest.mark.parametrize("name", ["toy", *(name for name in FAMILY_CHANGES if family_config(name).family.causal)])
def test_counts_follow_from_the_dimensions(name: str) -> None:
    config = toy_config() if name == "toy" else family_config(name)
    layers, c, kv = config.num_hidden_layers, config.hidden_size, config.num_key_value_heads * config.head_dim
    assert n_trainable(config, Prefix(7)) == 7 * layers * 2 * kv
    assert n_trainable(config, Prompt(9)) == 9 * c
    assert n_trainable(config, Head(4)) == 4 * c
    everything = sum(prod(shape) for part in part_names(config) for shape in vectors(config, part).values())
    table = prod(config.position_table() or (0,))
    assert n_trainable(config, Norms()) == everything - table
    assert n_trainable(config, Full()) == config.n_parameters()


@pytest.mark.parametrize("scheme", EXAMPLES, ids=lambda scheme: scheme.name)
def test_schemes_survive_json(scheme: Scheme) -> None:
    data = scheme_to_dict(scheme)
    assert scheme_from_dict({key: list(v) if isinstance(v, tuple) else v for key, v in data.items()}) == scheme


def test_the_table_has_every_scheme() -> None:
    assert {name: kind for name, kind in SCHEMES.items()} == {scheme.name: type(scheme) for scheme in EXAMPLES}


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (Prefix(0), "--virtual-tokens 0 must be from 1 to 4096"),
        (Prompt(5000), "--virtual-tokens 5000 must be from 1 to 4096"),
        (Head(), "--scheme head trains a classifier of 2 to 4096 labels, not 0; plain text has none: choose"),
        (Head(1), "of 2 to 4096 labels, not 1"),
    ],
)
def test_schemes_that_cannot_work_are_refused(scheme: Scheme, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        scheme.check(toy_config())


@pytest.mark.parametrize("labels", [-1, 4097])
def test_labels_are_bounded(labels: int) -> None:
    with pytest.raises(UsageError, match=f"a classifier tells at most 4096 labels apart, not {labels}"):
        make_scheme("norms", LoraConfig(), 1, labels)


def test_every_weight_is_trained_of_causal_models_only() -> None:
    with pytest.raises(UsageError, match="--scheme full is for causal models; roberta trains with --scheme lora"):
        Full().check(family_config("roberta"))


@pytest.mark.parametrize("scheme", EXAMPLES[:-1], ids=lambda scheme: scheme.name)
def test_roberta_trains_with_every_other_scheme(scheme: Scheme) -> None:
    config = family_config("roberta")
    scheme.check(config)
    parts = part_names(config)
    trained = {part: set(scheme.shapes(config, part)) for part in parts}
    of_classifier = {f"classifier.{module}.{kind}" for module in ("dense", "out_proj") for kind in ("weight", "bias")}
    assert any(trained.values())
    assert (trained["head"] >= of_classifier) == (scheme.name == "head")
    assert replace(scheme, labels=4).shapes(config, "head").keys() >= of_classifier
    # The bias of each word is added in the pass that streams the vocabulary, and has no gradient.
    assert "lm_head.bias" not in trained["head"]


@pytest.mark.parametrize("scheme", [Prefix(6), Head(6)], ids=lambda scheme: scheme.name)
def test_random_starts_are_small_seeded_and_differ_row_by_row(scheme: Scheme) -> None:
    (name, shape), *_ = scheme.shapes(toy_config(), "head" if scheme.name == "head" else "block_001").items()
    starts = []
    for key in ((0, 1, 0), (0, 1, 0), (1, 1, 0), (0, 1, 1)):
        starts.append(np.full(shape, np.nan, np.float32))
        scheme.fill_initial(starts[-1], name, key, stored=None)  # type: ignore[arg-type]
    assert (starts[0] == starts[1]).all()
    assert (starts[0] != starts[2]).all() and (starts[0] != starts[3]).all()
    assert 0.015 < starts[0].std() < 0.025
    assert len(np.unique(starts[0], axis=0)) == 6


def _nodes(scheme: Scheme, schedule: str = "mebp"):  # type: ignore[no-untyped-def]
    config = toy_config(num_hidden_layers=3)
    graph = ModelGraph(config, scheme, 13, 32)
    return lower(graph, choices_for(schedule, 3, graph.residuals), OptimizerConfig()).nodes


def test_a_classifier_has_no_backward_below_it() -> None:
    nodes = _nodes(Head(2))
    backward = [node for node in nodes if node.phase in ("recompute", "backward")]
    assert {node.part for node in backward} == {"head"}
    assert not {node.op for node in nodes} & {"spill", "restore", "linear_q4_backward_input", "rmsnorm_backward_input"}
    graph = ModelGraph(toy_config(), Head(2), 13, 32)
    assert graph.residuals == ()


def test_a_classifier_reads_no_vocabulary_matrix() -> None:
    (page_in,) = [node for node in _nodes(Head(2)) if node.op == "page_in" and node.part == "head"]
    assert page_in.attrs["part"] == "head"


def test_virtual_keys_need_no_gradient_of_the_first_input() -> None:
    first = ModelGraph(toy_config(), Prefix(4), 13, 32).attention(0).backward
    assert "x" not in first.gradients
    # Nothing of q matters to a prefix alone: its gradients end at k and v.
    assert "linear_q4_backward_input" in {node.op for node in first.nodes}  # of o_proj
    assert [node.op for node in first.nodes].count("linear_q4_backward_input") == 1
    assert "rope_backward" not in {node.op for node in first.nodes}


def test_a_prompt_reaches_through_the_first_block() -> None:
    graph = ModelGraph(toy_config(), Prompt(4), 13, 32)
    assert graph.attention(0) is graph.attention(1)
    assert [node.op for node in graph.embed_backward().nodes] == ["take_rows"]
    assert not any(node.op == "lora_backward" for node in _nodes(Prompt(4)))
