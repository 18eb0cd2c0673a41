// SPDX-FileCopyrightText: 2026 The onprem.llm authors
// SPDX-License-Identifier: Apache-2.0
// Compiled for several architectures and linked with NCCL where there is one; without a GPU it says why it cannot run.
#include <cstdio>
#include <cuda_runtime.h>
#ifdef WITH_NCCL
#include <nccl.h>
#endif

__global__ void saxpy(int n, float a, const float *x, float *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        y[i] = a * x[i] + y[i];
}

int main() {
#ifdef WITH_NCCL
    int nccl = 0;
    if (ncclGetVersion(&nccl) != ncclSuccess)
        return 1;
    printf("nccl %d.%d.%d\n", nccl / 10000, nccl / 100 % 100, nccl % 100);
#else
    printf("nccl none\n");
#endif
    int devices = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);
    printf("devices %d: %s\n", devices, cudaGetErrorString(error));
    if (!devices)
        return 0;
    saxpy<<<1, 32>>>(0, 1.0f, nullptr, nullptr);
    return cudaDeviceSynchronize() != cudaSuccess;
}
