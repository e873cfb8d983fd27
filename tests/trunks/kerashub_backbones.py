"""Every image backbone of KerasHub, small and random: a configuration for each class, which tests hold against the library."""

import inspect

import keras

from model_patch.graph.keras_private import names_counted_from_zero

SIZE = 32
"""Pixels; those of `LARGER` need more."""

LARGER = {"BASNetBackbone": 64, "DenseNetBackbone": 64, "XceptionBackbone": 64}

OTHER = ("vocab", "text", "num_frames", "prompt", "clip_", "channels_", "language", "vision_dim", "input_feat")
"""Parts of the names of arguments of models that take texts, videos, sounds, prompts or latents besides images, or instead."""


def image_backbones(hub) -> dict[str, type]:
    """The classes of models that are neither abstract nor known to take something else than images, by name."""
    found = {}
    for name, each in vars(hub.models).items():
        if inspect.isclass(each) and issubclass(each, keras.Model) and not issubclass(each, hub.models.Task):
            arguments = inspect.signature(each.__init__).parameters.keys() - {"self", "args", "dtype", "kwargs"}
            if arguments and not any(part in argument for part in OTHER for argument in arguments):
                found[name] = each
    return found


def shape(name):
    size = LARGER.get(name, SIZE)
    return (size, size, 3)


def _vit(**options):
    return {"patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 12} | options


def _clip(**options):
    return _vit(intermediate_dim=24, **options)


def _resnet(hub):
    return hub.models.ResNetBackbone([64], [3], [64, 64], [1, 1], [1, 2], "basic_block")


def _large_resnet(hub):
    return hub.models.ResNetBackbone([64], [7], [64, 64, 64, 64], [1, 1, 1, 1], [1, 2, 2, 2], "basic_block")


CONFIGS = {
    "BLIP2VisionEncoder": lambda hub: _clip(
        **dict.fromkeys(("use_patch_bias", "use_class_token", "use_mha_bias", "use_mlp_bias"), True),
        dropout_rate=0.1,
        layer_norm_epsilon=1e-6,
        initializer_range=0.02,
    ),
    "BASNetBackbone": lambda hub: {
        "image_encoder": _large_resnet(hub),
        "num_classes": 1,
        "projection_filters": 64,
    },
    "CLIPVisionEncoder": lambda hub: _clip(),
    "CSPNetBackbone": lambda hub: {
        "stem_filters": 8,
        "stem_kernel_size": 3,
        "stem_strides": 2,
        "stackwise_depth": [1, 1],
        "stackwise_strides": [1, 2],
        "stackwise_num_filters": [8, 16],
        "block_type": "dark_block",
        "stage_type": "dark",
    },
    "DFineBackbone": lambda hub: {
        "backbone": hub.models.HGNetV2Backbone(
            **CONFIGS["HGNetV2Backbone"](hub) | {"out_features": ["stage1", "stage2"]}
        ),
        "decoder_in_channels": [16, 16],
        "encoder_hidden_dim": 16,
        "num_denoising": 0,
        "num_labels": 2,
        "hidden_dim": 16,
        "learn_initial_query": False,
        "num_queries": 5,
        "anchor_image_size": (SIZE, SIZE),
        "feat_strides": [4, 8],
        "num_feature_levels": 2,
        "encoder_in_channels": [8, 16],
        "encode_proj_layers": [1],
        "num_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "num_encoder_layers": 1,
        "hidden_expansion": 0.34,
        "depth_multiplier": 0.5,
        "eval_idx": -1,
        "num_decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "decoder_n_points": [2, 2],
        "lqe_hidden_dim": 8,
        "num_lqe_layers": 1,
        "out_features": ["stage1", "stage2"],
    },
    "DINOV2Backbone": lambda hub: _clip(num_register_tokens=2, position_embedding_shape=(SIZE, SIZE, 3)),
    "DINOV3Backbone": lambda hub: _clip(num_register_tokens=2, hidden_dim=16),
    "DeepLabV3Backbone": lambda hub: {
        "image_encoder": _resnet(hub),
        "spatial_pyramid_pooling_key": "P3",
        "upsampling_size": 2,
        "dilation_rates": [2, 3],
        "low_level_feature_key": "P2",
        "projection_filters": 8,
    },
    "DeiTBackbone": lambda hub: _clip(),
    "DenseNetBackbone": lambda hub: {"stackwise_num_repeats": [2, 2], "growth_rate": 4},
    "DepthAnythingBackbone": lambda hub: {
        "image_encoder": hub.models.DINOV2Backbone(
            **_clip(num_layers=4), position_embedding_shape=(SIZE, SIZE, 3), image_shape=(SIZE, SIZE, 3)
        ),
        "reassemble_factors": [4, 2, 1, 1],
        "neck_hidden_dims": [4, 4, 8, 8],
        "fusion_hidden_dim": 8,
        "head_hidden_dim": 4,
        "head_in_index": -1,
        "feature_keys": ["stage1", "stage2", "stage3", "stage4"],
    },
    "EfficientNetBackbone": lambda hub: {
        "stackwise_width_coefficients": [0.25, 0.25],
        "stackwise_depth_coefficients": [1.0, 1.0],
        "stackwise_kernel_sizes": [3, 3],
        "stackwise_num_repeats": [1, 1],
        "stackwise_input_filters": [32, 16],
        "stackwise_output_filters": [16, 24],
        "stackwise_expansion_ratios": [1, 6],
        "stackwise_strides": [1, 2],
        "stackwise_squeeze_and_excite_ratios": [0.25, 0.25],
        "stackwise_block_types": ["v1", "v1"],
        "stackwise_force_input_filters": [0, 0],
        "stackwise_nores_option": [False, False],
        "num_features": 16,
    },
    "Gemma3VisionEncoder": lambda hub: _clip(output_dim=8, pool_size=2),
    "Gemma4VisionEncoder": lambda hub: _clip(output_dim=8, pool_size=2, head_dim=6),
    "HGNetV2Backbone": lambda hub: {
        "depths": [1, 1],
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "stem_channels": [3, 8, 8],
        "hidden_act": "relu",
        "use_learnable_affine_block": True,
        "stackwise_stage_filters": [(8, 8, 8, 1, 2, 3), (8, 8, 16, 1, 2, 3)],
        "apply_downsample": [False, True],
        "use_lightweight_conv_block": [False, True],
    },
    "MetaCLIP2VisionEncoder": lambda hub: _clip(),
    "MiTBackbone": lambda hub: {
        "layerwise_depths": [1, 1],
        "num_layers": 2,
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [2, 1],
        "max_drop_path_rate": 0.1,
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
        "hidden_dims": [8, 16],
    },
    "MobileNetBackbone": lambda hub: {
        "stackwise_expansion": [[16], [24]],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_filters": [[8], [16]],
        "stackwise_kernel_size": [[3], [5]],
        "stackwise_num_strides": [[2], [2]],
        "stackwise_se_ratio": [[None], [0.25]],
        "stackwise_activation": [["relu"], ["hard_swish"]],
        "stackwise_padding": [[1], [2]],
        "output_num_filters": None,
        "depthwise_filters": 8,
        "depthwise_stride": 2,
        "depthwise_residual": False,
        "last_layer_filter": 16,
        "squeeze_and_excite": 0.5,
    },
    "MobileNetV5Backbone": lambda hub: {
        "stackwise_block_types": [["er"], ["uir", "mqa"]],
        "stackwise_num_blocks": [1, 2],
        "stackwise_num_filters": [[8], [16, 16]],
        "stackwise_strides": [[2], [2, 1]],
        "stackwise_act_layers": [["relu"], ["relu", "relu"]],
        "stackwise_exp_ratios": [[2.0], [2.0, 2.0]],
        "stackwise_se_ratios": [[0.0], [0.0, 0.0]],
        "stackwise_dw_kernel_sizes": [[0], [5, 0]],
        "stackwise_dw_start_kernel_sizes": [[0], [3, 0]],
        "stackwise_dw_end_kernel_sizes": [[0], [0, 0]],
        "stackwise_exp_kernel_sizes": [[3], [0, 0]],
        "stackwise_pw_kernel_sizes": [[1], [0, 0]],
        "stackwise_num_heads": [[0], [0, 2]],
        "stackwise_key_dims": [[0], [0, 8]],
        "stackwise_value_dims": [[0], [0, 8]],
        "stackwise_kv_strides": [[0], [0, 1]],
        "stackwise_use_cpe": [[False], [False, False]],
        "num_features": 16,
        "msfa_output_resolution": 4,
        "layer_scale_init_value": 0.5,
    },
    "ResNetBackbone": lambda hub: {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
    },
    "RetinaNetBackbone": lambda hub: {
        "image_encoder": _large_resnet(hub),
        "min_level": 3,
        "max_level": 5,
        "use_p5": False,
    },
    "SegFormerBackbone": lambda hub: {
        "image_encoder": hub.models.MiTBackbone(**CONFIGS["MiTBackbone"](hub), image_shape=(SIZE, SIZE, 3)),
        "projection_filters": 8,
    },
    "SigLIPVisionEncoder": lambda hub: _clip(),
    "SwinTransformerBackbone": lambda hub: {
        "embed_dim": 8,
        "depths": (2, 2),
        "num_heads": (1, 2),
        "window_size": 4,
        "patch_size": 4,
    },
    "VGGBackbone": lambda hub: {"stackwise_num_repeats": [1, 1], "stackwise_num_filters": [8, 12]},
    "ViTBackbone": lambda hub: _vit(mlp_dim=24),
    "ViTDetBackbone": lambda hub: {
        "hidden_size": 8,
        "num_layers": 2,
        "intermediate_dim": 16,
        "num_heads": 2,
        "global_attention_layer_indices": [1],
        "patch_size": 8,
        "num_output_channels": 8,
        "window_size": 2,
    },
    "XceptionBackbone": lambda hub: {
        "stackwise_conv_filters": [[8, 12], [12, 12]],
        "stackwise_pooling": [True, False],
    },
}
"""By class, the arguments of its constructor but for the image shape, given the library."""


REFUSED: dict[str, str] = {
    "DFineBackbone": "gives .*: expected features",
    "Gemma3VisionEncoder": r"takes \(None, None, 32, 32, 3\): expected one image",  # Several images of each example.
    "Gemma4VisionEncoder": r"takes .*\(None, None, None, 192\): expected one image",  # Patches and their positions.
}
"""Classes that are no trunk, with the error."""

NOT_BANKED: dict[str, str] = {}
"""Classes whose tasks cannot be in a bank, with the error."""


def build(hub, name):
    """A backbone of a class with the arguments above."""
    backbone = getattr(hub.models, name)
    arguments = inspect.signature(backbone.__init__).parameters
    shapes = {key: shape(name) for key in ("image_shape", "input_shape") if key in arguments}
    shapes |= {"image_size": shape(name)[0]} if "image_size" in arguments else {}
    with names_counted_from_zero():  # As `kerashub:PRESET` does.
        return backbone(**CONFIGS[name](hub), **shapes)
