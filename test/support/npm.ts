/** npm and what calls it, as users run them. */

/** npm's own settings of the run that started the tests would point an installation at this checkout. */
export function npmEnvironment(more: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  const kept = /^npm_config_(cache|nodedir|registry|userconfig|https?_proxy|cafile)$/;
  const entries = Object.entries(process.env).filter(([name]) => !name.startsWith('npm_') || kept.test(name));
  return { ...Object.fromEntries(entries), npm_config_audit: 'false', npm_config_fund: 'false', ...more };
}
