"""Count again what the bounds of a black-box audit are functions of, from the stored outputs."""

from __future__ import annotations

from dpaudit.attacks.final_model import trial_statistics
from dpaudit.runs.directory import RunDirectory
from dpaudit.vocabulary.audit import FINAL_MODELS_NAME, AuditReport
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.workflow.audit.final_model_settings import FinalModelSettings
from dpaudit.workflow.audit.final_model_trials import TrialFiles, complete_trials


def require_counts_of_models(run: RunDirectory, audit: AuditReport) -> None:
    """Refuse counts that are missing, or differ from those of the models' stored outputs.

    Args:
        run: A finished run.
        audit: The run's audit.

    Raises:
        IntegrityError: If a count of a bound from final models is missing or differs, or the
            stored outputs are missing or broken.
    """
    of_models = [one for one in audit.bounds if one.name.startswith(FINAL_MODELS_NAME)]
    if not of_models:
        return
    files = TrialFiles(run.final_model_plan, run.final_model_trials)
    found = complete_trials(files)
    if found is None:
        raise IntegrityError(f"{files.trials} is not complete: finish the audit by --black-box")
    plan, outputs = found
    settings = FinalModelSettings.of_names(plan.pairs, plan.settings, stops_early=plan.stops_early)
    counted = trial_statistics(outputs, view=settings.outputs, stops_early=plan.stops_early)
    for bound in of_models:
        if bound.estimator != counted.get(bound.name):
            raise IntegrityError(
                f"{run.audit}: the counts of {bound.name!r} are not those of the outputs in "
                f"{files.trials}: audit the run again"
            )
