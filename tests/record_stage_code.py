"""Write `stage_code.json` anew: `python -m tests.record_stage_code`, after a stage's version was raised."""

from tests.stages import record

if __name__ == "__main__":
    record()
