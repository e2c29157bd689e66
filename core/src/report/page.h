// The parts of the page, which the build embeds from core/src/report/page.
#pragma once

#include <string_view>

namespace dsv3::report {

extern const std::string_view kBody;    ///< HTML inside <body>
extern const std::string_view kStyle;   ///< CSS
extern const std::string_view kScript;  ///< JavaScript, which reads the element #data

}  // namespace dsv3::report
