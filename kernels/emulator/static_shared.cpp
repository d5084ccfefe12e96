#include "static_shared.h"

#include <cxxabi.h>
#include <elf.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

extern thread_local unsigned char retune_emulator_shared_memory[];

namespace emulator {

namespace {

struct Symbol {
    uint64_t offset;
    size_t bytes;
    std::string name;
};

template <class T>
bool read_at(std::FILE* file, uint64_t offset, size_t count, std::vector<T>& items) {
    items.resize(count);
    return std::fseek(file, static_cast<long>(offset), SEEK_SET) == 0 &&
           std::fread(items.data(), sizeof(T), count, file) == count;
}

// The thread-local symbols of this program.
std::vector<Symbol> thread_local_symbols() {
    const auto close = [](std::FILE* file) { std::fclose(file); };
    const std::unique_ptr<std::FILE, decltype(close)> file(std::fopen("/proc/self/exe", "rb"), close);
    std::vector<Elf64_Ehdr> header;
    std::vector<Elf64_Shdr> sections;
    if (!file || !read_at(file.get(), 0, 1, header) || std::memcmp(header[0].e_ident, ELFMAG, SELFMAG) != 0 ||
        header[0].e_ident[EI_CLASS] != ELFCLASS64 ||
        !read_at(file.get(), header[0].e_shoff, header[0].e_shnum, sections)) {
        return {};
    }
    std::vector<Symbol> found;
    for (const Elf64_Shdr& section : sections) {
        if (section.sh_type != SHT_SYMTAB || section.sh_link >= sections.size()) continue;
        std::vector<Elf64_Sym> symbols;
        std::vector<char> names;
        const Elf64_Shdr& strings = sections[section.sh_link];
        if (!read_at(file.get(), section.sh_offset, section.sh_size / sizeof(Elf64_Sym), symbols) ||
            !read_at(file.get(), strings.sh_offset, strings.sh_size, names) || names.empty() || names.back() != 0) {
            return {};
        }
        for (const Elf64_Sym& symbol : symbols) {
            if (ELF64_ST_TYPE(symbol.st_info) != STT_TLS || symbol.st_size == 0 || symbol.st_name >= names.size()) {
                continue;
            }
            found.push_back({symbol.st_value, symbol.st_size, names.data() + symbol.st_name});
        }
    }
    return found;
}

// `kernel()::name` in C++ becomes `name`.
std::string short_name(const std::string& symbol) {
    int status = 0;
    char* const demangled = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status);
    const std::string whole = demangled == nullptr ? symbol : demangled;
    std::free(demangled);
    const size_t colons = whole.rfind("::");
    return colons == std::string::npos ? whole : whole.substr(colons + 2);
}

}  // namespace

StaticShared::StaticShared() {
    static const std::vector<Symbol> symbols = thread_local_symbols();
    const auto anchor = std::find_if(symbols.begin(), symbols.end(), [](const Symbol& symbol) {
        return symbol.name == "retune_emulator_shared_memory";
    });
    if (anchor == symbols.end()) return;
    known_ = true;
    unsigned char* const block = retune_emulator_shared_memory - anchor->offset;
    for (const Symbol& symbol : symbols) {
        // The namespaces that the build script puts kernels in.
        if (symbol.name.find("kernels_of_") == std::string::npos) continue;
        variables_.push_back({block + symbol.offset, symbol.bytes, short_name(symbol.name), symbol.name, 0});
    }
    std::sort(variables_.begin(), variables_.end(),
              [](const Variable& a, const Variable& b) { return a.begin < b.begin; });
    for (Variable& variable : variables_) {
        variable.offset = bytes_;
        bytes_ += variable.bytes;
    }
}

const StaticShared::Variable* StaticShared::nearest(const void* address) const {
    const auto after = std::upper_bound(variables_.begin(), variables_.end(), address,
                                        [](const void* at, const Variable& variable) { return at < variable.begin; });
    return after == variables_.begin() ? nullptr : &*std::prev(after);
}

void StaticShared::fill(const char* unit, unsigned char byte) const {
    for (const Variable& variable : variables_) {
        if (variable.symbol.find(unit) != std::string::npos) std::memset(variable.begin, byte, variable.bytes);
    }
}

}  // namespace emulator
