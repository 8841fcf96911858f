"""Counts the weights of a Llama model and the operations of training it. Nothing here is measured.

One multiplication with its addition counts as 2 operations. The operations of a LoRA training are, for each token:
- for each weight of a frozen linear layer: 2 in the forward pass and 2 in the backward pass, which computes no gradient
  of the weight; under gradient checkpointing 2 more, because the forward pass of each layer runs again;
- for each weight of the adapter: 2 more in the backward pass, for its gradient;
- for each weight of the output layer: 2 forward and 2 backward. Checkpointing does not repeat it. Looking up an
  embedding is no multiplication and counts nothing.
Attention counts between each token and the tokens before it in its own row (causal), not across packed rows. Padding
does not count.
"""

# What measured runs are computed for: a card that many people own. The rate is that of dense bf16 matrix products with
# fp32 accumulation, from the table of the RTX 3090 in NVIDIA's "Ampere GA102 GPU Architecture" whitepaper.
OTHER_CARD = {"gpu": "NVIDIA GeForce RTX 3090", "tflops": 71.0}


def projections(config: dict) -> dict[str, tuple[int, int]]:
    """The linear layers of one decoder layer: name → (input width, output width). `config`: a Llama config.json."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, values = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, values),
        "v_proj": (hidden, values),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def count_frozen(config: dict) -> int:
    """The number of weights in the linear layers of all decoder layers, without embeddings and output layer."""
    return config["num_hidden_layers"] * sum(width * height for width, height in projections(config).values())


def count_adapter(config: dict, settings: dict) -> int:
    """The number of weights of a LoRA adapter on the layers that a recipe's `lora_target` names.

    A layer of width × height gets two matrices: width × rank and rank × height.
    """
    target = settings.get("lora_target", "all")
    names = target.replace(" ", "").split(",")
    sides = [sum(shape) for name, shape in projections(config).items() if target == "all" or name in names]
    return config["num_hidden_layers"] * settings.get("lora_rank", 8) * sum(sides)


def count_operations(config: dict, settings: dict, lengths: list[int]) -> float | None:
    """The operations of training a LoRA adapter once on rows of these lengths, in tokens.

    `config`: a Llama config.json; `settings`: the keys of a recipe. None if the recipe trains no LoRA adapter.
    """
    if settings.get("finetuning_type", "lora") != "lora":
        return None
    repeated = 0 if settings.get("disable_gradient_checkpointing") else 1
    output = 2 * 2 * config["hidden_size"] * config["vocab_size"]
    token = 2 * (2 + repeated) * count_frozen(config) + 2 * (3 + repeated) * count_adapter(config, settings) + output
    # The forward pass has two products (queries by keys, weights by values), the backward pass four. A row of n tokens
    # has n * (n + 1) / 2 pairs of a token and one before it; the factor 1/2 is cancelled by the 2 operations.
    pair = 2 * (3 + repeated) * config["num_hidden_layers"] * projections(config)["q_proj"][1]
    return float(sum(token * length + pair * length * (length + 1) for length in lengths))
