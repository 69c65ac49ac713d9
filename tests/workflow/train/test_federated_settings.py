"""Settings and the plan of a federated run, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from federations import config_of
from msgspec.structs import replace

from dpaudit.accountants import pld
from dpaudit.runs.file_io import write_toml
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.federation import (
    DP_FEDAVG,
    DSSGD,
    DSSGD_CORRECTED,
    FEDAVG,
    FederatedConfig,
    LocalTraining,
    SecureAggregationSettings,
)
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated
from dpaudit.vocabulary.privacy_terms import Unit
from dpaudit.workflow.train.federated_plan import (
    has_planned_mechanism,
    planned_federated_claim,
    planned_federated_epsilon,
    planned_federated_mechanism,
    planned_steps,
    with_calibrated_federation,
)
from dpaudit.workflow.train.federated_settings import (
    build_federated_config,
    federated_origins,
    merge_federated_settings,
    read_federated_file,
)
from dpaudit.workflow.train.settings_layers import (
    SettingsLayer,
    is_federated_file,
    read_config_file,
)

DEFAULTS: SettingsLayer = {
    "data": {"source": "digits"},
    "federation": {"strategy": FEDAVG, "participants": 4, "rounds": 10},
    "privacy": {"delta": 1e-5, "clip_norm": 0.5, "unaccounted": ()},
}


def config(strategy: str, **changes: object) -> FederatedConfig:
    return replace(config_of(strategy, 4, 10, **changes), local=LocalTraining(5, 0.2))


def test_settings_of_a_run_are_read_back(tmp_path: Path) -> None:
    for strategy in (FEDAVG, DP_FEDAVG):
        path = tmp_path / f"{strategy}.toml"
        write_toml(path, config(strategy, max_epsilon=3.0))
        assert is_federated_file(path)
        built = build_federated_config(merge_federated_settings([read_federated_file(path)]))
        assert built == config(strategy, max_epsilon=3.0)


def test_later_layers_override_earlier_ones() -> None:
    file: SettingsLayer = {
        "federation": {"rounds": 3},
        "privacy": {"noise_multiplier": 2.0, "unaccounted": ("a",)},
    }
    options: SettingsLayer = {"privacy": {"clip_norm": 0.1, "unaccounted": ("b", "a")}}
    merged = merge_federated_settings([DEFAULTS, file, options])
    built = build_federated_config(merged)
    assert (built.federation.rounds, built.privacy.clip_norm) == (3, 0.1)
    assert built.privacy.unaccounted == ("a", "b")
    origins = federated_origins(
        built, [("default", DEFAULTS), ("f.toml", file), ("options", options)]
    )
    assert origins["federation.rounds"] == "f.toml"
    assert origins["federation.participants"] == "default"
    assert origins["privacy.clip_norm"] == "options"
    assert origins["privacy.unaccounted"] == "f.toml, options"


def test_target_epsilon_of_a_later_layer_replaces_the_noise() -> None:
    layers: list[SettingsLayer] = [
        DEFAULTS,
        {"privacy": {"noise_multiplier": 9.0}},
        {"privacy": {"target_epsilon": 2.0}},
    ]
    built = build_federated_config(merge_federated_settings(layers))
    assert planned_federated_epsilon(built) <= 2.0
    assert built.privacy.noise_multiplier < 9
    back = [*layers, {"privacy": {"noise_multiplier": 7.0}}]
    assert build_federated_config(merge_federated_settings(back)).privacy.noise_multiplier == 7.0
    both: SettingsLayer = {"privacy": {"noise_multiplier": 1.0, "target_epsilon": 2.0}}
    with pytest.raises(InvalidArgument, match="left out where target_epsilon"):
        merge_federated_settings([DEFAULTS, both])


def test_noise_is_required_except_for_published_dssgd() -> None:
    with pytest.raises(InvalidArgument, match="noise_multiplier"):
        build_federated_config(merge_federated_settings([DEFAULTS]))
    published: SettingsLayer = {"federation": {"strategy": DSSGD}}
    built = build_federated_config(merge_federated_settings([DEFAULTS, published]))
    assert built.privacy.noise_multiplier == 0


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[federation]\nround = 3\n", "did you mean rounds"),
        ("[privacy]\nsampling_rate = 0.1\n[federation]\n", "sampling_rate"),
        ('[federation]\nrounds = "3"\n', "rounds"),
        ('schema_version = "9.0"\n[federation]\n', "schema_version"),
    ],
)
def test_wrong_key_of_a_file_is_named(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=word):
        read_federated_file(path)


def test_file_of_a_federation_is_refused_for_one_trainer(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[federation]\nrounds = 3\n")
    with pytest.raises(InvalidArgument, match="--federated STRATEGY"):
        read_config_file(path)


def test_plan_is_the_composition_over_rounds_and_local_steps() -> None:
    local = PoissonSampled(Gaussian(1.5), 0.2)
    for strategy in (FEDAVG, DSSGD_CORRECTED):
        assert planned_federated_mechanism(config(strategy)) == Repeated(local, 50)
        assert planned_federated_mechanism(config(strategy), 2) == Repeated(local, 10)
    server = config(DP_FEDAVG, participation_rate=0.25)
    assert planned_federated_mechanism(server) == Repeated(PoissonSampled(Gaussian(1.5), 0.25), 10)
    assert planned_steps(server) == 10


def test_plan_of_unknown_releases_is_refused() -> None:
    for unknown in (config(DSSGD), config(FEDAVG, noise_multiplier=0.0)):
        assert not has_planned_mechanism(unknown)
        with pytest.raises(InvalidArgument, match="to plan epsilon"):
            planned_federated_mechanism(unknown)


@pytest.mark.parametrize("strategy", [FEDAVG, DP_FEDAVG, DSSGD_CORRECTED])
def test_calibrated_noise_meets_the_target_and_no_less_does(strategy: str) -> None:
    found = with_calibrated_federation(config(strategy), 2.0)
    assert planned_federated_epsilon(found) <= 2.0
    noise = found.privacy.noise_multiplier
    less = replace(found, privacy=replace(found.privacy, noise_multiplier=0.999 * noise))
    assert planned_federated_epsilon(less) > 2.0


def test_planned_claim_has_the_unit_of_its_strategy() -> None:
    record = planned_federated_claim(config(FEDAVG), 1e-6, "rdp")
    assert (record.unit, record.delta, record.accountant) == (Unit.RECORD, 1e-6, "rdp")
    assert record.releases == 4 * 50
    level = planned_federated_claim(config(DP_FEDAVG), 1e-5, "pld")
    assert (level.unit, level.releases) == (Unit.PARTICIPANT, 10)
    exact = pld.profile(planned_federated_mechanism(config(DP_FEDAVG))).epsilon(delta=1e-5)
    assert level.epsilon == exact


@pytest.mark.parametrize(
    ("strategy", "copies"), [(FEDAVG, 1), (DSSGD_CORRECTED, 1), (DP_FEDAVG, 0)]
)
def test_planned_claim_names_copies_of_records_as_the_run_does(strategy: str, copies: int) -> None:
    independent = replace(
        config(strategy).federation, partition="independent", records_per_participant=100
    )
    plan = replace(config(strategy), federation=independent)
    assert len(planned_federated_claim(plan, 1e-5, "rdp").unaccounted) == copies


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("", None),
        ("[secure_aggregation]\n", SecureAggregationSettings()),
        (
            '[secure_aggregation]\ndropouts = 1\nnoise = "skellam"\n',
            SecureAggregationSettings(dropouts=1, noise="skellam"),
        ),
    ],
)
def test_secure_aggregation_is_on_where_its_section_is(
    tmp_path: Path, section: str, expected: SecureAggregationSettings | None
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(
        '[data]\nsource = "digits"\n'
        '[federation]\nstrategy = "dp-fedavg"\nparticipants = 4\nrounds = 3\n'
        "[privacy]\nnoise_multiplier = 2.0\ndelta = 1e-5\nclip_norm = 0.3\n" + section
    )
    layer = read_federated_file(path)
    built = build_federated_config(merge_federated_settings([layer]))
    assert built.secure_aggregation == expected
    origins = federated_origins(built, [("file", layer)])
    assert origins.get("secure_aggregation.dropouts") == {
        None: None,
        SecureAggregationSettings(): "default",
    }.get(expected, "file")
    assert has_planned_mechanism(built) is (expected is None)
