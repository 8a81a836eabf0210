"""Bases of other kinds: Llama 4's towers, Meta's folders; and an adapter whose files are damaged."""

import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import llama4
import meta_folders
import numpy as np
import pytest
import torch
from adapters import SMALL, WEIGHTS, assert_equal, in_training, merged_by_us, numbers, saved, trained
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, Llama4ForConditionalGeneration
from variants import edit_json

import converters
from converters.sources import open_checkpoint
from edge_llama import CheckpointError
