"""Layers: modules with a classmethod `init` that draws their parameters and a pure call; `optim` changes them."""

from core.engine.nn.activation import (
    Activation,
    elu,
    gelu,
    leaky_relu,
    log_softmax,
    relu,
    selu,
    silu,
    softmax,
    softplus,
)
from core.engine.nn.attention import MultiHeadAttention, attention
from core.engine.nn.conv import Conv, ConvTranspose
from core.engine.nn.dropout import Dropout
from core.engine.nn.embedding import Embedding
from core.engine.nn.graph import EdgeNetwork, GatedReadout, GatedUpdate, Set2Set, edge_messages, typed_sums
from core.engine.nn.init import Initialiser, fan_in_uniform, glorot_normal, glorot_uniform, he_normal
from core.engine.nn.linear import MLP, Linear
from core.engine.nn.norm import BatchNorm, GroupNorm, LayerNorm
from core.engine.nn.pool import avg_pool, global_avg_pool, global_max_pool, max_pool
from core.engine.nn.recurrent import GRU, LSTM, GRUCell, LSTMCell

__all__ = [
    "GRU", "LSTM", "MLP", "Activation", "BatchNorm", "Conv", "ConvTranspose", "Dropout", "EdgeNetwork", "Embedding",
    "GRUCell", "GatedReadout", "GatedUpdate", "GroupNorm", "Initialiser", "LSTMCell", "LayerNorm", "Linear",
    "MultiHeadAttention", "Set2Set", "attention", "avg_pool", "edge_messages", "elu", "fan_in_uniform", "gelu",
    "global_avg_pool", "global_max_pool", "glorot_normal", "glorot_uniform", "he_normal", "leaky_relu", "log_softmax",
    "max_pool", "relu", "selu", "silu", "softmax", "softplus", "typed_sums",
]
