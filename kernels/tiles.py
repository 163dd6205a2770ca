def quantizer_tile(M,K,R,device):
    bk=128
    while K%bk: bk//=2
    br=16
    while br<R: br*=2
    return dict(BLOCK_M=16,BLOCK_K=bk,BLOCK_R=br,num_warps=4,num_stages=3)
def unpack_tile(op,N,K):
    bk=256
    while K%bk: bk//=2
    return dict(BLOCK_N=16,BLOCK_K=bk,num_warps=4)
def gemm_tile(op,M,N,K,device):
    return dict(BLOCK_M=32,BLOCK_N=32,BLOCK_K=64,BLOCK_R=16,SWIZZLE_M=4,num_warps=4,num_stages=3)
