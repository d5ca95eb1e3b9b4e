/* The smallest call from C: one image, one filter. */
#include <stdio.h>

#include "sturdy/pushpull.h"

int main(void) {
  /* A step in brightness and a filter that responds to it. */
  float image[12] = {0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1};
  float filter[9] = {-1, 0, 1, -1, 0, 1, -1, 0, 1};
  float result[2] = {0, 0};
  int64_t image_shape[4] = {1, 1, 3, 4};
  int64_t filter_shape[4] = {1, 1, 3, 3};
  int64_t result_shape[4];
  const sturdy_dtype float32 = {STURDY_FLOAT, 32, 1};
  const sturdy_device cpu = {STURDY_CPU, 0};
  sturdy_tensor input = {image, cpu, 4, float32, image_shape, NULL, 0};
  sturdy_tensor weight = {filter, cpu, 4, float32, filter_shape, NULL, 0};
  sturdy_tensor out = {result, cpu, 4, float32, result_shape, NULL, 0};
  sturdy_push_pull_conv2d_options options = {0};
  int i;

  if (sturdy_abi_version() != STURDY_ABI_VERSION) {
    fprintf(stderr, "libsturdy_core and its header are of different versions\n");
    return 1;
  }
  options.struct_size = sizeof options;
  for (i = 0; i < 2; ++i) {
    options.stride[i] = 1;
    options.dilation[i] = 1;
    options.pool[i] = 1;
  }
  options.groups = 1;
  options.strength = 1.0;

  if (sturdy_push_pull_conv2d_infer(&options, &input, &weight, NULL, NULL, &out) != STURDY_OK ||
      sturdy_push_pull_conv2d(NULL, &options, &input, &weight, NULL, NULL, &out, NULL) != STURDY_OK) {
    fprintf(stderr, "%s\n", sturdy_last_error());
    return 1;
  }
  printf("(%d, %d, %d, %d): %g %g\n", (int)out.shape[0], (int)out.shape[1], (int)out.shape[2], (int)out.shape[3],
         result[0], result[1]);
  return 0;
}
