// Dependent launches: a kernel that starts before those in front of it have ended. Nothing before sm_90,
// where launches do not overlap. What each family of kernels promises on top of this is in its own ptx.cuh.
#pragma once

// Waits until the kernels that this one depends on have completed and their writes are visible. Every kernel
// that is launched as a dependent one waits on every path before it ends.
__device__ __forceinline__ void dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets dependents start; gives them no visibility.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
