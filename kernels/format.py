"""Every number that the packed format fixes, with its source.

Layout of a layer in memory (row-major, one definition for every kernel and for the torch reference):

    qweight        (N, K//2) int8     two 4-bit codes a byte, the even k in the low nibble
    wscales        (K//group_size, N) int4: 16-bit float; nvfp4: float8_e4m3fn
    wtscale        (1,)               nvfp4, optional: one factor for the whole weight
    wcscales       (N,)               nvfp4, optional: one factor for each output channel
    smooth_factor  (K,)               the activation is divided by it
    proj_down      (K, R)             low-rank branch, sees the activation before smoothing
    proj_up        (N, R)
    channel_scales (N,) float32       int4 and nvfp4, optional, derived: what brings the weight to int8 for w4a8
    wzeros         (K//64, N)         awq: weight = code * wscales + wzeros, codes 0...15

int8 layers ("w8a8") have the same tensors, but for these two:

    qweight        (N, K) int8        codes -127...127, one a byte
    wscales        (N,) float32       one for each output channel

Sources: SVDQuant, arXiv:2411.05007; NVFP4: OCP Microscaling Formats v1.0 for E2M1.
"""

GROUP_SIZE_INT4 = 64  # consecutive k that share a scale, weights and activations
GROUP_SIZE_NVFP4 = 16
GROUP_SIZE_AWQ = 64

INT4_MAX = 7  # activations and our own weights use -7...7; -8 is legal in files
UINT4_MAX = 15  # activations of a layer behind a GELU, after the shift
INT8_MAX = 127

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # magnitude of codes 0...7; bit 3 is the sign
E2M1_MAX = 6.0
E4M3_MAX = 448.0

# A GELU never falls below -0.17, so adding this makes its output fit unsigned codes; exact in bfloat16.
# The bias stored in a file already holds the correction for it.
GELU_SHIFT = 0.171875

RANK_MULTIPLE = 16  # ranks are padded with zeros to it: one k-step of a 16-bit tensor-core instruction
BLOB_ALIGNMENT = 256  # bytes; what a tensor-memory descriptor and a 16-byte vector load both accept
