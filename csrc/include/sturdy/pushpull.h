/* PushPull convolution (Bennabhaktula et al., PushPull-Net, ICPR 2024): forward and backward.
 *
 *   p = conv2d(input, weight)                    the push response
 *   q = conv2d(input, m - weight)                the pull response, m_o = min(weight_o) + max(weight_o)
 *   u = average of q over a pool window, stride 1, counting only cells inside the map
 *   out = relu(p) - inhibition * relu(u) + bias
 *
 * computed as one convolution and one box map per group, since q = m * box - p.
 */
#ifndef STURDY_PUSHPULL_H_
#define STURDY_PUSHPULL_H_

#include "sturdy/sturdy.h"

#ifdef __cplusplus
extern "C" {
#endif

/* m is taken of each input channel of a filter apart: q = conv2d(input, m - weight), m_oc = min + max over (kH, kW). */
#define STURDY_PUSH_PULL_CHANNEL_RANGE 1u
/* On CUDA, float32 may be multiplied on tensor cores, after rounding to 10 fraction bits (tf32). */
#define STURDY_PUSH_PULL_ALLOW_TF32 2u

typedef struct sturdy_push_pull_conv2d_options {
  uint32_t struct_size; /* sizeof(sturdy_push_pull_conv2d_options) as the caller was compiled */
  uint32_t flags;       /* 0 or of STURDY_PUSH_PULL_CHANNEL_RANGE, STURDY_PUSH_PULL_ALLOW_TF32 */
  int64_t stride[2];    /* rows, columns; at least 1 */
  int64_t padding[4];   /* zeros added at top, bottom, left, right; at least 0 */
  int64_t dilation[2];  /* at least 1 */
  int64_t groups;       /* divides input and output channels */
  int64_t pool[2];      /* window of the pull response; odd, 1 turns it off */
  double strength;      /* inhibition of all channels, used where the inhibition tensor is NULL */
} sturdy_push_pull_conv2d_options;

/* Shapes and dtypes:
 *   input      (N, C, H, W)            float16, bfloat16, float32 or float64; any strides
 *   weight     (O, C / groups, kH, kW) dtype of input; any strides
 *   inhibition (O,) or NULL            dtype of input or float32
 *   bias       (O,) or NULL            dtype of input or float32
 *   out, push  (N, O, Ho, Wo)          dtype of input; both contiguous or both channels-last; push may be NULL
 *
 * push receives p, which backward can use instead of computing it again.
 */

/* Checks everything and writes the sizes of the output into out->shape, which must hold four. Reads no data. */
STURDY_API sturdy_status sturdy_push_pull_conv2d_infer(const sturdy_push_pull_conv2d_options* options,
                                                       const sturdy_tensor* input, const sturdy_tensor* weight,
                                                       const sturdy_tensor* inhibition, const sturdy_tensor* bias,
                                                       sturdy_tensor* out);

/* Bytes of device scratch that the forward pass needs; 0 on the CPU and for arguments that infer refuses. */
STURDY_API size_t sturdy_push_pull_conv2d_workspace(const sturdy_push_pull_conv2d_options* options,
                                                    const sturdy_tensor* input, const sturdy_tensor* weight);

STURDY_API sturdy_status sturdy_push_pull_conv2d(const sturdy_context* context,
                                                 const sturdy_push_pull_conv2d_options* options,
                                                 const sturdy_tensor* input, const sturdy_tensor* weight,
                                                 const sturdy_tensor* inhibition, const sturdy_tensor* bias,
                                                 sturdy_tensor* out, sturdy_tensor* push);

/* Gradients of sum(grad_out * out). Outputs that are NULL are not computed:
 *   grad_input       shape and dtype of input;  contiguous or channels-last
 *   grad_weight      shape and dtype of weight; contiguous or channels-last
 *   grad_inhibition, grad_bias  (O,); dtype of input or float32
 * grad_out has the shape of out, the dtype of input, any strides (also 0). push is what forward wrote, or NULL.
 */
STURDY_API size_t sturdy_push_pull_conv2d_backward_workspace(const sturdy_push_pull_conv2d_options* options,
                                                             const sturdy_tensor* input, const sturdy_tensor* weight);

STURDY_API sturdy_status sturdy_push_pull_conv2d_backward(
    const sturdy_context* context, const sturdy_push_pull_conv2d_options* options, const sturdy_tensor* grad_out,
    const sturdy_tensor* input, const sturdy_tensor* weight, const sturdy_tensor* inhibition, const sturdy_tensor* push,
    sturdy_tensor* grad_input, sturdy_tensor* grad_weight, sturdy_tensor* grad_inhibition, sturdy_tensor* grad_bias);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* STURDY_PUSHPULL_H_ */
