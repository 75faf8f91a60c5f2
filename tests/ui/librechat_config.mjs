// What LibreChat's own schema says of the librechat.yaml on standard input, as JSON: its problems,
// and the fields it does not know, which LibreChat would pass over in silence.
import { readFileSync } from "node:fs";
import { Constants, configSchema } from "librechat-data-provider";
import yaml from "js-yaml";

const unknown = (given, known, path = "") =>
  given !== null && typeof given === "object"
    ? Object.keys(given).flatMap((key) =>
        known?.[key] === undefined
          ? [`${path}${key}`]
          : unknown(given[key], known[key], `${path}${key}.`),
      )
    : [];

const config = yaml.load(readFileSync(0, "utf8"));
const { success, data, error } = configSchema.strict().safeParse(config);
console.log(
  JSON.stringify({
    problems: success ? [] : error.issues.map(({ path, message }) => `${path.join(".")}: ${message}`),
    unknown: success ? unknown(config, data) : [],
    version: Constants.CONFIG_VERSION,
  }),
);
