// Runs one test kernel by name: prints what the Python side compares, or "error: <text>" with exit
// status 3.
//   emulated <command> [integer...]        also callable from a shared library: run(argc, argv)
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "kernels.hpp"

namespace {

using Integers = std::vector<int64_t>;

template <typename T>
std::vector<T> ramp(int64_t n) {  // whole numbers, so that sums are exact in any order
  std::vector<T> x(static_cast<std::size_t>(n));
  for (int64_t i = 0; i < n; ++i) x[static_cast<std::size_t>(i)] = T(i * 7919 % 1001 - 500);
  return x;
}

template <typename T>
void show(const T* values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) std::printf("%s%.17g", i ? " " : "", double(values[i]));
  std::printf("\n");
}

template <typename T>
void show(const std::vector<T>& values) {
  show(values.data(), values.size());
}

template <typename T>
void sums(const Integers& a) {
  const auto x = ramp<T>(a[0]);
  std::vector<T> out(static_cast<std::size_t>(a[1]), T(-1));
  kd::test::block_sums(x.data(), out.data(), a[0], int(a[1]), int(a[2]), nullptr);
  show(out);
}

template <typename T>
void transposed(const Integers& a) {
  const auto x = ramp<T>(a[0] * a[1]);
  std::vector<T> out(x.size(), T(-1));
  kd::test::transpose(x.data(), out.data(), a[0], a[1], nullptr);
  show(out);
}

template <typename T>
void shuffled(const Integers& a) {
  std::vector<T> out(4 * 64);
  kd::test::shuffles(out.data(), int(a[0]), nullptr);
  show(out);
}

// A faulty kernel of 64 threads in at most 3 blocks.
std::function<void(const Integers&)> faulty(void (*launcher)(int*, cudaStream_t)) {
  return [launcher](const Integers&) {
    std::vector<int> out(64);
    launcher(out.data(), nullptr);
    show(out);
  };
}

void rotate(const Integers& a, void (*launcher)(const int*, int*, int, cudaStream_t)) {
  const auto x = ramp<int>(256);
  std::vector<int> out(256, -1);
  for (int64_t i = 0; i < a[0]; ++i) {
    launcher(x.data(), out.data(), 256, nullptr);
    show(out);
  }
}

void atomics(const Integers&) {
  float f = 0;
  double d = 0;
  int i[5] = {0, -1000, 1000, 3, 0};
  unsigned u[3] = {0, 0, 0};
  unsigned long long l = 0;
  kd::test::atomics(&f, &d, i, u, &l, nullptr);
  std::printf("%g %g %d %d %d %d %d %u %u %u %llu\n", f, d, i[0], i[1], i[2], i[3], i[4], u[0],
              u[1], u[2], l);
}

void vectors(const Integers& a) {
  alignas(16) static float x[1024], out[1024];
  for (int i = 0; i < 1024; ++i) x[i] = float(i % 37) / 8 - 2;
  kd::test::vectors(x, out, a[0], nullptr);
  show(out, static_cast<std::size_t>(a[0]));
}

// A launch after an error: nothing of the failed one may be left.
void recover(const Integers&) {
  std::vector<int> out(64);
  for (const auto launcher :
       {kd::test::barrier_in_branch, kd::test::missing_lanes, kd::test::two_barriers}) {
    try {
      launcher(out.data(), nullptr);
      std::printf("no error\n");
    } catch (const kd::Error&) {
      sums<float>({5000, 3, 256});
    }
  }
}

void threads(const Integers& a) {  // launches from several host threads at once
  std::vector<std::thread> host;
  std::vector<std::vector<double>> outs(static_cast<std::size_t>(a[0]), std::vector<double>(2));
  const auto x = ramp<double>(3000);
  for (auto& out : outs)
    host.emplace_back([&x, &out] {
      for (int i = 0; i < 20; ++i) kd::test::block_sums(x.data(), out.data(), 3000, 2, 64, nullptr);
    });
  for (auto& thread : host) thread.join();
  for (const auto& out : outs) show(out);
}

void seeds(const Integers& a) {
  int value = 0;
  for (int64_t i = 0; i < a[0]; ++i) {
    kd::test::any_launch(&value, 1, 32, 0, nullptr);
    std::printf("%llu\n", static_cast<unsigned long long>(kd::emulation::last_seed()));
  }
}

// seconds of kernels with and without barriers
void measure(const Integers& a) {
  std::vector<float> x(static_cast<std::size_t>(a[0]));
  for (const int barriers : {0, int(a[2])}) {
    const auto switches = kd::emulation::num_switches();
    const auto begin = std::chrono::steady_clock::now();
    kd::test::churn(x.data(), a[0], barriers, int(a[1]), nullptr);
    const double ns =
        std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count();
    const double made = double(kd::emulation::num_switches() - switches);
    std::printf("%d barriers: %.1f ns per thread, %.0f switches, %.1f ns each\n", barriers,
                ns / double(a[0]), made, ns / made);
  }
}

const std::map<std::string, std::function<void(const Integers&)>> kCommands = {
    {"sums_float", sums<float>},
    {"sums_double", sums<double>},
    {"sums_int", sums<int>},
    {"transpose_float", transposed<float>},
    {"transpose_double", transposed<double>},
    {"shuffles_int", shuffled<int>},
    {"shuffles_unsigned", shuffled<unsigned>},
    {"shuffles_int64", shuffled<int64_t>},
    {"shuffles_float", shuffled<float>},
    {"shuffles_double", shuffled<double>},
    {"reverse_tiles",
     [](const Integers& a) {
       const auto x = ramp<float>(a[0]);
       std::vector<float> out(x.size(), -1.0f);
       kd::test::reverse_tiles(x.data(), out.data(), a[0], int(a[1]), nullptr);
       show(out);
     }},
    {"big_tile",
     [](const Integers& a) {
       std::vector<float> out(static_cast<std::size_t>(a[0]), -1.0f);
       kd::test::big_tile(out.data(), a[0], nullptr);
       show(out);
     }},
    {"histogram",
     [](const Integers& a) {
       std::vector<int> x(static_cast<std::size_t>(a[0])), counts(7);
       for (std::size_t i = 0; i < x.size(); ++i) x[i] = int(i * i % 7);
       kd::test::histogram(x.data(), counts.data(), a[0], 7, nullptr);
       show(counts);
     }},
    {"votes",
     [](const Integers&) {
       std::vector<unsigned> out(6 * 64);
       kd::test::votes(out.data(), nullptr);
       show(out);
     }},
    {"half_warps", faulty(kd::test::half_warps)},
    {"atomics", atomics},
    {"vectors", vectors},
    {"indices",
     [](const Integers&) {
       std::vector<unsigned> out(5 * 3 * 2 * 4 * 3 * 2);
       kd::test::indices(out.data(), dim3(5, 3, 2), dim3(4, 3, 2), nullptr);
       show(out);
     }},
    {"unwritten",
     [](const Integers& a) {
       std::vector<float> out(static_cast<std::size_t>(4 * a[0]), -1.0f);
       for (int i = 0; i < 2; ++i) {
         kd::test::unwritten(out.data(), int(a[0]), nullptr);
         show(out);
       }
     }},
    {"rotate_without_barrier",
     [](const Integers& a) { rotate(a, kd::test::rotate_without_barrier); }},
    {"rotate_with_barrier", [](const Integers& a) { rotate(a, kd::test::rotate_with_barrier); }},
    {"blocks_in_order",
     [](const Integers& a) {
       std::vector<int> out(static_cast<std::size_t>(a[0]));
       kd::test::blocks_in_order(out.data(), int(a[0]), nullptr);
       show(out);
     }},
    {"barrier_in_branch", faulty(kd::test::barrier_in_branch)},
    {"return_before_barrier", faulty(kd::test::return_before_barrier)},
    {"two_barriers", faulty(kd::test::two_barriers)},
    {"missing_lanes", faulty(kd::test::missing_lanes)},
    {"outside_mask", faulty(kd::test::outside_mask)},
    {"warp_and_barrier", faulty(kd::test::warp_and_barrier)},
    {"past_dynamic",
     [](const Integers& a) {
       float out = 0;
       kd::test::past_dynamic(&out, int(a[0]), nullptr);
     }},
    {"past_static",
     [](const Integers& a) {
       float out = 0;
       kd::test::past_static(&out, int(a[0]), nullptr);
     }},
    {"past_stack",
     [](const Integers& a) {
       float out = 0;
       kd::test::past_stack(&out, int(a[0]), nullptr);
     }},
    {"any_launch",
     [](const Integers& a) {
       int out = 0;
       const dim3 grid{unsigned(a[0]), unsigned(a[1]), unsigned(a[2])},
           block{unsigned(a[3]), unsigned(a[4]), unsigned(a[5])};
       kd::test::any_launch(&out, grid, block, int(a[6]), nullptr);
       show(&out, 1);
     }},
    {"static_and_dynamic",
     [](const Integers& a) {
       std::vector<float> out(32);
       kd::test::static_and_dynamic(out.data(), int(a[0]), nullptr);
       show(out);
     }},
    {"recover", recover},
    {"threads", threads},
    {"seeds", seeds},
    {"measure", measure},
};

}  // namespace

extern "C" __attribute__((visibility("default"))) int run(int argc, char** argv) {
  const auto command = kCommands.find(argc > 1 ? argv[1] : "");
  if (command == kCommands.end()) {
    std::fprintf(stderr, "expected a command, got '%s'\n", argc > 1 ? argv[1] : "");
    return 2;
  }
  Integers integers;
  for (int i = 2; i < argc; ++i) integers.push_back(std::atoll(argv[i]));
  int status = 0;
  try {
    command->second(integers);
  } catch (const kd::Error& error) {
    std::printf("error: %s\n", error.what());
    status = 3;
  }
  std::fflush(stdout);
  return status;
}

int main(int argc, char** argv) { return run(argc, argv); }
