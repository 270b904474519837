// Where the __shared__ variables are, and the dynamic shared memory.  Both hold 0xFF bytes (NaN,
// -1) when a block begins.
#pragma once
#include <cstddef>
#include <string>
#include <unordered_map>
#include <vector>

namespace kd::emulation {

// bytes per block, as on sm_90
constexpr std::size_t kSharedDefault = 48 * 1024, kSharedOptIn = 227 * 1024;

struct Bytes {
  unsigned char* begin;
  std::size_t size;
};

struct KernelShared {
  // of the variables inside the kernel; 0 if the module is stripped
  std::size_t static_bytes = 0;
  std::size_t max_total = kSharedDefault;  // static and dynamic; cudaFuncSetAttribute raises it
  std::vector<Bytes> variables;            // to poison before every block
};

// The static shared memory of this module (library or program), read from its ELF file once.
class StaticShared {
 public:
  StaticShared();  // throws kd::Error if the variables cannot be found
  KernelShared& of(const void* kernel);
  static void poison(const KernelShared& kernel);
  // Poisons whatever was written; variables found so join `kernel`, since a function that it calls
  // has them.
  void poison_written(KernelShared& kernel);

 private:
  struct Symbol {
    std::string name;
    Bytes bytes;
    std::size_t file;
  };
  void read_module();
  void read_symbols(const unsigned char* file, const void* symbol_section, const void* sections,
                    std::size_t base);
  bool contains(const void* address) const;

  std::vector<Bytes> sections_;
  std::vector<Symbol> variables_;
  std::unordered_map<const void*, std::vector<std::size_t>> variables_of_function_;
  std::unordered_map<const void*, KernelShared> kernels_;
};

class DynamicShared {
 public:
  DynamicShared();
  void* data() const { return memory_; }
  // poisons; what follows is a red zone, also AddressSanitizer's
  void begin_block(std::size_t bytes);
  bool is_intact() const;  // the red zone, where AddressSanitizer does not watch it
  void end_launch();

 private:
  unsigned char* memory_;
  std::size_t bytes_ = 0;
};

}  // namespace kd::emulation
