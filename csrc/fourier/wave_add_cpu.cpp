// wave_add on the CPU: cuts a call into units and hands them to the kernels of the machine's instruction set.
#include <algorithm>

#include "common/cpu_features.h"
#include "fourier/wave_add.h"
#include "fourier/wave_add_cpu_plan.h"

namespace sturdy {
namespace cpu {
namespace {

constexpr int64_t kTaskPixels = 32768;  // less is not worth a thread's while
constexpr int64_t kUnitsWanted = 32;    // enough for any machine's threads to share a few large planes
constexpr int64_t kLeastBandRows = 32;  // each band computes sines for all columns again
// Results of more than this go past the caches: whoever reads them next would not find their beginning there anyway,
// and ordinary stores read a line before they write it, which is a third of all traffic.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

const WaveAddKernels& kernels(DType dtype, bool input_is_bytes) {
  return STURDY_ON_CPU_ISA(wave_add_kernels(dtype, input_is_bytes));
}

WaveAddCut make_cut(const Waves& waves, bool merged, bool whole_planes) {
  WaveAddCut cut = {};
  cut.merged = merged;
  cut.planes = merged ? 1 : waves.channels;
  const int64_t planes = std::max<int64_t>(waves.batch * cut.planes, 1);
  const int64_t wanted = whole_planes ? 1 : (kUnitsWanted + planes - 1) / planes;
  const int64_t bands = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(waves.height / kLeastBandRows, 1));
  cut.band_rows = std::max<int64_t>((waves.height + bands - 1) / bands, 1);
  cut.bands = std::max<int64_t>((waves.height + cut.band_rows - 1) / cut.band_rows, 1);
  return cut;
}

template <typename Params>
Status run(void (*kernel)(const Params&, const WaveAddCut&, int64_t, int64_t), const Params& params,
           const WaveAddCut& cut, const Threads& threads) {
  const Waves& waves = params.waves;
  const int64_t channels = cut.merged ? waves.channels : 1;
  const int64_t unit_pixels = std::max<int64_t>(cut.band_rows * waves.width * channels, 1);
  const int64_t grain = std::max<int64_t>(kTaskPixels / unit_pixels, 1);
  return threads(cut.units(waves.batch), grain, [&](int64_t begin, int64_t end) { kernel(params, cut, begin, end); });
}

}  // namespace

Status wave_add(const WaveAddParams& params, const Threads& threads) {
  const bool merged = params.waves.channels > 1 && params.out.stride[1] == 1 && params.out.stride[3] != 1;
  WaveAddCut cut = make_cut(params.waves, merged, false);
  const Waves& waves = params.waves;
  cut.streams = waves.batch * waves.channels * waves.height * waves.width * int64_t{4} > kStreamBytes;
  return run(kernels(params.dtype, params.input_is_bytes).forward, params, cut, threads);
}

Status wave_add_backward(const WaveAddBackwardParams& params, const Threads& threads) {
  const WaveAddCut cut = make_cut(params.waves, false, params.grad_amplitude != nullptr);
  return run(kernels(params.dtype, params.input_is_bytes).backward, params, cut, threads);
}

}  // namespace cpu
}  // namespace sturdy
