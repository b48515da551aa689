"""Which fields the messages of an ONNX file have, and its element types.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx-ml.proto (IR version 14). Names are those found
there; how a field is described is said in ``models.onnx.wire``.
"""

from collections.abc import Mapping

from models.onnx.wire import Spec

MODEL: Spec = {
    1: "v",  # ir_version
    2: "b",  # producer_name
    3: "b",  # producer_version
    4: "b",  # domain
    5: "v",  # model_version
    6: "b",  # doc_string
    7: "b",  # graph
    8: "b*",  # opset_import
    14: "b*",  # metadata_props
    20: "b*",  # training_info
    25: "b*",  # functions
    26: "b*",  # configuration
}
GRAPH: Spec = {
    1: "b*",  # node
    2: "b",  # name
    5: "b*",  # initializer
    10: "b",  # doc_string
    11: "b*",  # input
    12: "b*",  # output
    13: "b*",  # value_info
    14: "b*",  # quantization_annotation
    15: "b*",  # sparse_initializer
    16: "b*",  # metadata_props
}
NODE: Spec = {
    1: "b*",  # input
    2: "b*",  # output
    3: "b",  # name
    4: "b",  # op_type
    5: "b*",  # attribute
    6: "b",  # doc_string
    7: "b",  # domain
    8: "b",  # overload
    9: "b*",  # metadata_props
    10: "b*",  # device_configurations
}
ATTRIBUTE: Spec = {
    1: "b",  # name
    2: "4",  # f
    3: "v",  # i
    4: "b",  # s
    5: "b",  # t
    6: "b",  # g
    7: "d*",  # floats
    8: "d*",  # ints
    9: "b*",  # strings
    10: "b*",  # tensors
    11: "b*",  # graphs
    13: "b",  # doc_string
    14: "b",  # tp
    15: "b*",  # type_protos
    20: "v",  # type
    21: "b",  # ref_attr_name
    22: "b",  # sparse_tensor
    23: "b*",  # sparse_tensors
}
TENSOR: Spec = {
    1: "v*",  # dims
    2: "v",  # data_type
    3: "b",  # segment
    4: "d*",  # float_data
    5: "d*",  # int32_data
    6: "b*",  # string_data
    7: "d*",  # int64_data
    8: "b",  # name
    9: "b",  # raw_data
    10: "d*",  # double_data
    11: "d*",  # uint64_data
    12: "b",  # doc_string
    13: "b*",  # external_data
    14: "v",  # data_location
    16: "b*",  # metadata_props
}
SPARSE_TENSOR: Spec = {1: "b", 2: "b", 3: "v*"}  # values, indices, dims
VALUE: Spec = {1: "b", 2: "b", 3: "b", 4: "b*"}  # name, type, doc_string, metadata_props
TYPE: Spec = {1: "b", 4: "b", 5: "b", 6: "b", 7: "b", 8: "b", 9: "b"}  # 1 is a tensor's
TENSOR_TYPE: Spec = {1: "v", 2: "b"}  # elem_type, shape
SHAPE: Spec = {1: "b*"}
DIMENSION: Spec = {1: "v", 2: "b", 3: "b"}  # value, parameter, denotation
FUNCTION: Spec = {
    1: "b",  # name
    4: "b*",  # input
    5: "b*",  # output
    6: "b*",  # attribute
    7: "b*",  # node
    8: "b",  # doc_string
    9: "b*",  # opset_import
    10: "b",  # domain
    11: "b*",  # attribute_proto
    12: "b*",  # value_info
    13: "b",  # overload
    14: "b*",  # metadata_props
}
OPSET: Spec = {1: "b", 2: "v"}  # domain, version
ENTRY: Spec = {1: "b", 2: "b"}  # key, value

ELEMENT_TYPES: Mapping[int, tuple[str, int]] = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    8: ("string", 0),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    14: ("complex64", 64),
    15: ("complex128", 128),
    16: ("bfloat16", 16),
    17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8),
    19: ("float8e5m2", 8),
    20: ("float8e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("float4e2m1", 4),
    24: ("float8e8m0", 8),
    25: ("uint2", 2),
    26: ("int2", 2),
}
"""Name of an element type and its bits; a string has no size."""
