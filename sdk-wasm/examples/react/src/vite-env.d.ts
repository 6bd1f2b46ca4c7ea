interface ImportMetaEnv {
  readonly VITE_TIDEGATE_URL: string;
  readonly VITE_TIDEGATE_KEY: string;
  readonly VITE_TIDEGATE_PUBLIC_KEY: string;
}
