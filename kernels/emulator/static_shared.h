// The location of a kernel's static shared arrays: thread-local variables of the program, found in its symbol table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

// The static shared arrays of this host thread.
class StaticShared {
public:
    struct Variable {
        unsigned char* begin;
        size_t bytes;
        std::string name;
        // The linker's name, which contains the unit's namespace.
        std::string symbol;
        // The offset of its bytes if all variables are placed end to end.
        size_t offset;
    };

    StaticShared();

    // False if the program has no symbol table; then there are no variables.
    bool known() const {
        return known_;
    }
    const std::vector<Variable>& variables() const {
        return variables_;
    }
    size_t bytes() const {
        return bytes_;
    }
    // The variable that an address lies in, or the nearest one before it; null if there is none.
    const Variable* nearest(const void* address) const;
    // Fills the variables of one translation unit.
    void fill(const char* unit, unsigned char byte) const;

private:
    bool known_ = false;
    size_t bytes_ = 0;
    std::vector<Variable> variables_;
};

}  // namespace emulator
