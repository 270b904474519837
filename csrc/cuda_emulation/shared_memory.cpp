#include "cuda_emulation/shared_memory.hpp"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/check.hpp"
#include "cuda_emulation/cuda_emulation.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace kd::emulation {
namespace {

constexpr unsigned char kRedZoneByte = 0xA5;
constexpr std::size_t kRedZone = 4096, kWatched = 256;

// A shared variable like those of kernels: a check that the sections read are those of this module.
template <typename T>
T* probe() {
  __shared__ T value;
  return &value;
}

// Uninstrumented and out of line: the sections contain AddressSanitizer's red zones too.  True if a
// byte differed from 0xFF.
__attribute__((noinline, no_sanitize("address", "undefined"))) bool fill_with_ones(
    unsigned char* begin, std::size_t size) {
  bool changed = false;
  volatile unsigned char* p = begin;
  unsigned char* const end = begin + size;
  for (; p < end && reinterpret_cast<std::uintptr_t>(p) % 8 != 0; ++p)
    if (*p != 0xFF) *p = 0xFF, changed = true;
  // volatile: the compiler must not make it a memset, which would be checked
  for (; p + 8 <= end; p += 8) {
    auto* const word = reinterpret_cast<volatile std::uint64_t*>(p);
    if (*word != ~std::uint64_t{0}) *word = ~std::uint64_t{0}, changed = true;
  }
  for (; p < end; ++p)
    if (*p != 0xFF) *p = 0xFF, changed = true;
  return changed;
}

struct Module {
  std::string path;
  std::size_t base;
};

// The library or program that contains this very function.
Module own_module() {
  Module module{"", 0};
  const auto visit = [](dl_phdr_info* info, std::size_t, void* out) {
    const auto here = reinterpret_cast<std::uintptr_t>(&fill_with_ones);
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& segment = info->dlpi_phdr[i];
      const std::uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
      if (segment.p_type == PT_LOAD && here >= begin && here < begin + segment.p_memsz) {
        *static_cast<Module*>(out) = {info->dlpi_name[0] ? info->dlpi_name : "/proc/self/exe",
                                      info->dlpi_addr};
        return 1;
      }
    }
    return 0;
  };
  dl_iterate_phdr(visit, &module);
  return module;
}

// A file mapped for reading, for the life of the object.
class MappedFile {
 public:
  explicit MappedFile(const char* path) {
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (file >= 0 && fstat(file, &info) == 0) {
      void* const memory =
          mmap(nullptr, static_cast<std::size_t>(info.st_size), PROT_READ, MAP_PRIVATE, file, 0);
      if (memory != MAP_FAILED)
        data_ = static_cast<unsigned char*>(memory), size_ = static_cast<std::size_t>(info.st_size);
    }
    if (file >= 0) close(file);
  }
  ~MappedFile() {
    if (data_) munmap(data_, size_);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const unsigned char* data() const { return data_; }
  bool is_elf() const {
    return data_ && size_ > sizeof(ElfW(Ehdr)) && std::memcmp(data_, ELFMAG, SELFMAG) == 0;
  }

 private:
  unsigned char* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace

StaticShared::StaticShared() {
  read_module();
  if (!contains(probe<float>()))
    fail(
        "cuda_emulation: expected to find the static shared memory in sections .noinit of this "
        "module's file, found none; build "
        "with g++ and -fvisibility=hidden, and do not replace the file while it is in use");
  for (const Bytes& section : sections_) fill_with_ones(section.begin, section.size);
}

bool StaticShared::contains(const void* address) const {
  const auto* const p = static_cast<const unsigned char*>(address);
  for (const Bytes& section : sections_)
    if (p >= section.begin && p < section.begin + section.size) return true;
  return false;
}

void StaticShared::read_module() {
  const Module module = own_module();
  const MappedFile file(module.path.c_str());
  if (!file.is_elf()) return;
  const auto* const header = reinterpret_cast<const ElfW(Ehdr)*>(file.data());
  const auto* const sections = reinterpret_cast<const ElfW(Shdr)*>(file.data() + header->e_shoff);
  const auto* const names =
      reinterpret_cast<const char*>(file.data() + sections[header->e_shstrndx].sh_offset);
  for (int i = 0; i < header->e_shnum; ++i) {
    const char* const name = names + sections[i].sh_name;
    if (std::strncmp(name, ".noinit", 7) == 0 && (name[7] == '\0' || name[7] == '.'))
      sections_.push_back({reinterpret_cast<unsigned char*>(module.base + sections[i].sh_addr),
                           sections[i].sh_size});
  }
  for (int i = 0; i < header->e_shnum; ++i)
    if (sections[i].sh_type == SHT_SYMTAB)
      read_symbols(file.data(), &sections[i], sections, module.base);
}

// A local variable x of function _Z<f> has the symbol _ZZ<f>Ex, in the mangling that g++ uses.
void StaticShared::read_symbols(const unsigned char* file, const void* symbol_section,
                                const void* sections, std::size_t base) {
  const auto* const table = static_cast<const ElfW(Shdr)*>(symbol_section);
  const auto* const symbols = reinterpret_cast<const ElfW(Sym)*>(file + table->sh_offset);
  const auto* const names = reinterpret_cast<const char*>(
      file + static_cast<const ElfW(Shdr)*>(sections)[table->sh_link].sh_offset);
  const std::size_t count = table->sh_size / sizeof(ElfW(Sym));
  std::unordered_map<std::string, int> occurrences;
  for (std::size_t i = 0, source = 0; i < count; ++i) {
    const auto* const address = reinterpret_cast<unsigned char*>(base + symbols[i].st_value);
    if (ELF64_ST_TYPE(symbols[i].st_info) == STT_FILE) source = i;
    if (ELF64_ST_TYPE(symbols[i].st_info) != STT_OBJECT || !contains(address)) continue;
    variables_.push_back({names + symbols[i].st_name,
                          {const_cast<unsigned char*>(address), symbols[i].st_size},
                          source});
    occurrences[variables_.back().name] += 1;
  }
  for (std::size_t i = 0, source = 0; i < count; ++i) {
    if (ELF64_ST_TYPE(symbols[i].st_info) == STT_FILE) source = i;
    const std::string name = names + symbols[i].st_name;
    if (ELF64_ST_TYPE(symbols[i].st_info) != STT_FUNC || symbols[i].st_value == 0 ||
        name.rfind("_Z", 0) != 0)
      continue;
    const std::string prefix = "_ZZ" + name.substr(2) + "E";
    for (std::size_t v = 0; v < variables_.size(); ++v) {
      const Symbol& variable = variables_[v];
      if (variable.name.compare(0, prefix.size(), prefix) != 0) continue;
      // two files may have kernels of one name in anonymous namespaces
      if (occurrences[variable.name] > 1 && variable.file != source) continue;
      auto& found =
          variables_of_function_[reinterpret_cast<const void*>(base + symbols[i].st_value)];
      // a function may have two names
      if (std::find(found.begin(), found.end(), v) == found.end()) found.push_back(v);
    }
  }
}

KernelShared& StaticShared::of(const void* kernel) {
  const auto [entry, is_new] = kernels_.try_emplace(kernel);
  if (!is_new) return entry->second;
  // stripped: poison everything every time
  if (variables_.empty()) entry->second.variables = sections_;
  const auto found = variables_of_function_.find(kernel);
  if (found == variables_of_function_.end()) return entry->second;
  for (const std::size_t v : found->second) {
    entry->second.variables.push_back(variables_[v].bytes);
    entry->second.static_bytes += variables_[v].bytes.size;
  }
  return entry->second;
}

void StaticShared::poison(const KernelShared& kernel) {
  for (const Bytes& bytes : kernel.variables) fill_with_ones(bytes.begin, bytes.size);
}

void StaticShared::poison_written(KernelShared& kernel) {
  poison(kernel);
  for (const Symbol& variable : variables_)
    if (fill_with_ones(variable.bytes.begin, variable.bytes.size))
      kernel.variables.push_back(variable.bytes);
}

DynamicShared::DynamicShared() {
  void* const memory = mmap(nullptr, kSharedOptIn + kRedZone, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  KD_CHECK(memory != MAP_FAILED,
           "cuda_emulation: expected memory for the dynamic shared memory, got none");
  memory_ = static_cast<unsigned char*>(memory);
}

void DynamicShared::begin_block(std::size_t bytes) {
  bytes_ = bytes;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(memory_, bytes);
  __asan_poison_memory_region(memory_ + bytes, kSharedOptIn + kRedZone - bytes);
#else
  std::memset(memory_ + bytes, kRedZoneByte, kWatched);
#endif
  std::memset(memory_, 0xFF, bytes);
}

bool DynamicShared::is_intact() const {
#if !defined(__SANITIZE_ADDRESS__)
  for (std::size_t i = 0; i < kWatched; ++i)
    if (memory_[bytes_ + i] != kRedZoneByte) return false;
#endif
  return true;
}

void DynamicShared::end_launch() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(memory_, kSharedOptIn + kRedZone);
#endif
}

}  // namespace kd::emulation
