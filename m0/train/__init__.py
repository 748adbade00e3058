"""Training: JSON lines in; LoRA, head or everything trained in stages with ranking losses; an adapter or a checkpoint out.

config      what to train, read from TOML
data        queries with their documents, streamed from disk
losses      the ranking losses, each with its formula
mining      hard negatives by the model as it is
learner     a model with its trained parameters and optimizer, in one process or many
record      curves and the description of a run
state       checkpoints; resuming: where a run begins, anew or from one of them
passes      what goes through the model in a step; updates: one stage's steps; validation
loop        the whole run
"""

from m0.train.config import Stage, TrainConfig
from m0.train.loop import train

__all__ = ["Stage", "TrainConfig", "train"]
