// One PushPull convolution over an image: the push response, what inhibition leaves of it, and what a wrong call says.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "sturdy/pushpull.hpp"

namespace {

constexpr int64_t image_size = 32;

// Grey values around zero: a dark vertical line, and a tenth of the pixels black or white.
std::vector<float> make_image() {
  std::vector<float> image(image_size * image_size);
  std::mt19937 random(7);
  for (int64_t row = 0; row < image_size; ++row) {
    for (int64_t column = 0; column < image_size; ++column) {
      float& pixel = image[row * image_size + column];
      pixel = column == 15 ? -0.4f : 0.1f;
      if (random() % 10 == 0) {
        pixel = random() % 2 == 0 ? -0.5f : 0.5f;
      }
    }
  }
  return image;
}

// Two filters that respond to dark lines of one pixel, a vertical and a horizontal one.
std::vector<float> make_filters() {
  std::vector<float> filters;
  for (const bool vertical : {true, false}) {
    for (int row = 0; row < 5; ++row) {
      for (int column = 0; column < 5; ++column) {
        filters.push_back((vertical ? column : row) == 2 ? -0.4f : 0.1f);
      }
    }
  }
  return filters;
}

float mean_of_positive_part(const float* values, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += std::max(values[i], 0.0f);
  }
  return sum / static_cast<float>(count);
}

void filter_image() {
  const std::vector<float> image = make_image();
  const std::vector<float> filters = make_filters();
  const sturdy::TensorView input(image.data(), {1, 1, image_size, image_size});
  const sturdy::TensorView weight(filters.data(), {2, 1, 5, 5});

  sturdy_push_pull_conv2d_options options = sturdy::push_pull_conv2d_options();
  std::fill_n(options.padding, 4, 2);
  std::fill_n(options.pool, 2, 3);
  const std::vector<int64_t> shape = sturdy::push_pull_conv2d_shape(options, input, weight);
  const int64_t map_size = shape[2] * shape[3];
  std::vector<float> out(shape[1] * map_size);
  std::vector<float> push(out.size());
  sturdy::TensorView push_view(push.data(), shape);
  sturdy::push_pull_conv2d(options, input, weight, {out.data(), shape}, nullptr, nullptr, push_view);
  for (int64_t channel = 0; channel < shape[1]; ++channel) {
    std::printf("%s lines: mean response %.3f, after inhibition %.3f\n", channel == 0 ? "vertical" : "horizontal",
                mean_of_positive_part(push.data() + channel * map_size, map_size),
                mean_of_positive_part(out.data() + channel * map_size, map_size));
  }
}

// Returns what the library says to four input channels in three groups.
std::string make_mistake() {
  sturdy_push_pull_conv2d_options options = sturdy::push_pull_conv2d_options();
  options.groups = 3;
  float* const no_data = nullptr;  // shapes are checked without looking at the numbers
  try {
    sturdy::push_pull_conv2d_shape(options, {no_data, {1, 4, 8, 8}}, {no_data, {6, 4, 3, 3}});
  } catch (const sturdy::Error& error) {
    return error.what();
  }
  return "nothing";
}

}  // namespace

int main() {
  std::printf("sturdy %s\n", sturdy_version());
  try {
    filter_image();
  } catch (const sturdy::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  std::printf("a wrong call says: %s\n", make_mistake().c_str());
  return 0;
}
