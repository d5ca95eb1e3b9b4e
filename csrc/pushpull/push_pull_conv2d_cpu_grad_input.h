// The gradient of input as the direct form computes it, for a backward that finds gp in its own way.
#pragma once

#include "common/parallel.h"
#include "common/scratch.h"
#include "pushpull/push_pull_conv2d_cpu_plan.h"

namespace sturdy {
namespace cpu {

// One call's gradient of input, of dtypes that accumulate in float. Rounds of images go through the same planes:
// place and start once, then for each round fill the planes of `round` and run.
class GradInputCall {
 public:
  explicit GradInputCall(const PushPullGeometry& geometry);

  void place(Arena& arena);
  Status start(const View4& weight, const Threads& threads);  // packs the filters and zeroes the planes
  int64_t images() const { return grad_.images; }             // the most in a round
  const GradInputPlan& round(int64_t first, int64_t last);    // images [first, last)
  Status run(const View4& grad_input, const Threads& threads);

 private:
  PushPullPlan plan_;
  GradInputPlan grad_;
};

}  // namespace cpu
}  // namespace sturdy
