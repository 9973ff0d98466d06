"""For tasks with an agent: `once` declares a tool that must not be repeated; a reward function sees the rest."""

from nslora.tools.agents.once import once as once
from nslora.tools.trajectory import ModelCall as ModelCall
from nslora.tools.trajectory import ToolCall as ToolCall
from nslora.tools.trajectory import Trajectory as Trajectory
