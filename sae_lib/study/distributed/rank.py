"""One rank of a distributed run. `make paper GPUS=4` starts them; so does torchrun by hand:

torchrun --nproc-per-node 4 --virtual-local-rank -m sae_lib rank --profile gemma-2-2b
"""

from __future__ import annotations

from torch.distributed.elastic.multiprocessing.errors import record

from sae_lib.profiles.runs import ABLATION_GROUPS, ABLATION_SCORES, MAIN_GROUPS, plan_runs
from sae_lib.study.experiment import Experiment
from sae_lib.study.scoring import evaluate
from sae_lib.util import ranks
from sae_lib.util.errors import ArtifactError
from sae_lib.util.parallel import end_with_parent, use_one_core


def do_all(experiment: Experiment) -> None:
    """What the notebooks ask for, in their order: tokens, activations, sweep, main comparison, ablations, scores."""
    _tell("tokens and activations")
    ranks.from_first(lambda: _fetch(experiment))
    lm = experiment.language_model(whole=False)
    experiment.build_tokens(lm.tokenizer)
    experiment.harvest(lm)
    _tell("sweep, main comparison")
    calibration = experiment.calibrate()
    main = plan_runs(experiment.profile, calibration, MAIN_GROUPS)
    experiment.train(main)
    _tell("ablations")
    ablations = plan_runs(experiment.profile, calibration, ABLATION_GROUPS)
    experiment.train(ablations)
    evaluate(experiment, ablations, ABLATION_SCORES)
    _tell("evaluation")
    evaluate(experiment, main)


def _fetch(experiment: Experiment) -> None:
    """The model, by one rank; the others then find it on the disk."""
    experiment.language_model(whole=False)


def _tell(what: str) -> None:
    if ranks.rank() == 0:
        print(f"[{ranks.world()} ranks] {what}", flush=True)


@record
def run(profile: str) -> None:
    """This rank's part of the work."""
    experiment = Experiment.open(profile)
    if experiment.device == "cpu":
        use_one_core()
    with ranks.joined():
        do_all(experiment)
        ranks.barrier()


def be_a_rank(profile: str) -> int:
    """Run this rank. Returns its exit code; the launcher says what an ArtifactError says, once."""
    end_with_parent()
    try:
        run(profile)
    except ArtifactError:
        return 1
    return 0
