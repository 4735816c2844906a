#include "../cuda.h"  // which has the half types
