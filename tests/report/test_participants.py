"""Participants of a federation in reports and in text for the terminal."""

from __future__ import annotations

from msgspec.structs import replace

from dpaudit.report.descriptions import (
    claim_in_words,
    observers_in_words,
    threat_model_in_words,
)
from dpaudit.report.evidence import ParticipantEpsilon
from dpaudit.report.participants import (
    names_in_words,
    participant_rows,
    participant_table,
    unprotected_in_words,
)
from dpaudit.report.report_pages import report_page, summary_of
from dpaudit.report.run_status import FederationStatus, RunStage, RunStatus, status_text
from dpaudit.report.verdicts.gate_result import verdict_facts
from dpaudit.vocabulary.federation import OBSERVERS, FederationHeader, ThreatModel
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.privacy_terms import Bound, Unit
from tests.report.html_parser import Page
from tests.report.samples import (
    make_claim,
    make_evidence,
    make_federated_evidence,
    make_verdict,
)


def test_consecutive_participants_share_a_range() -> None:
    assert names_in_words(["000", "001", "002", "004", "005", "007"]) == "000 to 002, 004, 005, 007"
    assert names_in_words(["998", "999", "1000"]) == "998 to 1000"
    assert names_in_words([]) == ""


def test_participants_that_differ_have_rows_of_their_own() -> None:
    bound, other = Bound(0.9, 1.0), Bound(1.9, 2.0)
    rows = participant_rows(
        [
            ParticipantEpsilon("server", 5, bound),
            ParticipantEpsilon("000", 5, bound),
            ParticipantEpsilon("001", 5, other),
            ParticipantEpsilon("002", 5, bound),
            ParticipantEpsilon("003", 5, bound, left=3),
            ParticipantEpsilon("004", 0, None),
        ]
    )
    assert [row.names for row in rows] == ["server", "000, 002", "001", "003", "004"]


def test_bounds_of_the_table_are_rounded_outwards() -> None:
    rows = participant_table({"000": Bound(1.23456, 1.23456)}, ["server"], Bound(0.0, 1.23456))
    assert rows[1] == ("server", "no release of its own", "")
    assert rows[2] == ("000", "1.234", "1.235")
    assert rows[3] == ("largest", "-", "1.235")


def test_report_has_a_section_on_participants() -> None:
    page = Page(report_page(make_federated_evidence())).text
    assert "Participants of the federation" in page
    assert "the server and other participants" in page
    assert "readers of the final model" in page  # whom it does not protect against
    assert "left before round 7" in page
    assert "2 updates rejected" in page
    assert "2.985" in page
    assert "under an assumption that nothing enforces" in page  # it has a published figure
    assert "Published figure epsilon 0.01 per parameter and epoch" in page


def test_report_on_one_trainer_has_no_section_on_participants() -> None:
    assert "Participants of the federation" not in Page(report_page(make_evidence())).text


def test_sampling_of_a_participant_level_run_is_of_participants() -> None:
    evidence = make_federated_evidence()
    full = {"unit": Unit.PARTICIPANT, "sampling": Sampling.FULL_BATCH}
    page = Page(report_page(replace(evidence, claim=replace(evidence.claim, **full)))).text
    assert "every participant in every step" in page


def test_summary_states_whom_a_federation_protects_against() -> None:
    claim = summary_of(make_federated_evidence()).claim
    assert "the largest over the participants" in claim
    assert claim.endswith("It protects against the server and other participants.")
    assert "protects against" not in summary_of(make_evidence()).claim


def test_claim_states_whom_it_protects_against() -> None:
    claim = make_federated_evidence().claim
    assert "protects against the server and other participants." in claim_in_words(claim)
    assert "federation" not in claim_in_words(make_claim())


def test_observers_are_listed_in_words() -> None:
    everyone = FederationHeader("fedavg", 2, OBSERVERS)
    assert observers_in_words(everyone) == (
        "the server, other participants and readers of the final model"
    )
    assert observers_in_words(FederationHeader("dssgd", 2, ())) == "nobody"
    assert unprotected_in_words(everyone) == "none of these observers"
    assert unprotected_in_words(FederationHeader("x", 2, ("server",))) == (
        "other participants and readers of the final model"
    )


def test_status_of_a_federation_counts_rounds_and_lists_events() -> None:
    status = RunStatus(
        run="r",
        stage=RunStage.TRAINING,
        steps_done=3,
        steps=10,
        federation=FederationStatus(5, ("001", "003"), {"002": 2}, {"002": "it holds\x1b NaN"}),
    )
    text = status_text(status)
    assert "rounds              3 of 10" in text
    assert "5; no budget: 001, 003" in text
    assert "002 (2, last: it holds\ufffd NaN)" in text


def test_claim_and_pages_state_the_threat_model_of_secure_aggregation() -> None:
    model = ThreatModel(4, 3, 1, one_process=True)
    federation = FederationHeader("dp-fedavg", 4, model.protects_against, threat_model=model)
    claim = replace(make_claim(), federation=federation)
    assert claim_in_words(claim).endswith(model.summary)
    words = threat_model_in_words(federation)
    assert words is not None
    assert all(one in words for one in model.assumptions)
    evidence = replace(make_federated_evidence(), claim=claim)
    page = Page(report_page(evidence)).text
    assert all(one in page for one in model.assumptions)
    facts = dict(verdict_facts(replace(make_verdict(), claim=claim)))
    assert facts["threat model"] == words


def test_nothing_is_said_about_secure_aggregation_where_there_is_none() -> None:
    assert threat_model_in_words(None) is None
    assert threat_model_in_words(FederationHeader("fedavg", 4, OBSERVERS)) is None


def test_report_states_what_the_server_sees() -> None:
    evidence = make_federated_evidence()
    model = ThreatModel(4, 3, 1)

    def page(threat_model: ThreatModel | None) -> str:
        federation = FederationHeader(
            "dp-fedavg", 4, model.protects_against, threat_model=threat_model
        )
        claim = replace(evidence.claim, unit=Unit.PARTICIPANT, federation=federation)
        return Page(report_page(replace(evidence, claim=claim))).text

    assert "sees each update as it was sent" in page(None)
    secure = page(model)
    assert "as it was sent" not in secure
    assert "sees the noisy sum of a round and no single update" in secure
    assert "none of these observers" in secure
