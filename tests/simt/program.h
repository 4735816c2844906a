// What comes before a kernel's source in its program.
#pragma once
#include "cuda.h"
#include "entries.h"
