"""Many GPUs, many machines: what the notebooks would do one after the other, done before them by ranks of torchrun.

Every piece of work is kept under a content key and is never done twice: the ranks make tokens, activations, SAEs and
scores with the calls that the notebooks make, and the notebooks, on one process as always, find all of it done.
README.md says how ranks are started: with virtual local ranks, so that each sees its own GPU and no other, and "cuda"
is the right one in every thread. Nothing is restarted in place.
"""

from sae_lib.profiles.runs import ABLATION_GROUPS, ABLATION_SCORES, MAIN_GROUPS, plan_runs
from sae_lib.study.experiment import Experiment
from sae_lib.study.plan import blockers, make_plan
from sae_lib.study.scoring import evaluate
from sae_lib.util import ranks
from sae_lib.util.errors import ArtifactError
from sae_lib.util.parallel import end_with_parent, use_one_core


def be_a_rank(name: str) -> None:
    """This rank's part of what the notebooks of a profile ask for, in their order.

    Raises ArtifactError where something stands in the way, such as a GPU that this rank does not have, and LostRank
    when another rank has ended.
    """
    end_with_parent()
    experiment = Experiment.open(name)
    profile = experiment.profile
    if stopping := blockers(profile, make_plan(profile), experiment.paths):
        raise ArtifactError(stopping[0])
    if experiment.device == "cpu":
        use_one_core()
    with ranks.joined(), experiment.writing():
        _tell("tokens and activations")
        ranks.from_first(lambda: experiment.language_model(whole=False).d_in)  # the others then find its files
        experiment.prepare()
        _tell("sweep, main comparison")
        calibration = experiment.calibrate()
        main = plan_runs(profile, calibration, MAIN_GROUPS)
        experiment.train(main)
        _tell("ablations")
        grid = plan_runs(profile, calibration, ["atm_grid"])
        experiment.train(grid)
        calibration = experiment.calibrate_atm(calibration, evaluate(experiment, grid, ABLATION_SCORES).rows)
        ablations = plan_runs(profile, calibration, ABLATION_GROUPS)
        experiment.train(ablations)
        evaluate(experiment, ablations, ABLATION_SCORES)
        _tell("evaluation")
        evaluate(experiment, main)
        ranks.barrier()


def _tell(what: str) -> None:
    if ranks.rank() == 0:
        print(f"[{ranks.world()} ranks] {what}", flush=True)
