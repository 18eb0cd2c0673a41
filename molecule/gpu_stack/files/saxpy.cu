// SPDX-FileCopyrightText: 2026 The onprem.llm authors
// SPDX-License-Identifier: Apache-2.0
// Compiled for several architectures and linked with NCCL; without a GPU it says why it cannot run.
#include <cstdio>
#include <cuda_runtime.h>
#include <nccl.h>

__global__ void saxpy(int n, float a, const float *x, float *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        y[i] = a * x[i] + y[i];
}

int main() {
    int nccl = 0, devices = 0;
    ncclResult_t result = ncclGetVersion(&nccl);
    cudaError_t error = cudaGetDeviceCount(&devices);
    printf("nccl %d %s, devices %d: %s\n", nccl, ncclGetErrorString(result), devices, cudaGetErrorString(error));
    if (!devices)
        return 0;
    saxpy<<<1, 32>>>(0, 1.0f, nullptr, nullptr);
    return cudaDeviceSynchronize() != cudaSuccess;
}
